from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignedRequest(_message.Message):
    __slots__ = ("body", "mac", "reader", "number")
    BODY_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    mac: bytes
    reader: bytes
    number: int
    def __init__(self, body: _Optional[bytes] = ..., mac: _Optional[bytes] = ..., reader: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("pages", "layer_begin", "layer_end", "part", "rank")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    LAYER_BEGIN_FIELD_NUMBER: _ClassVar[int]
    LAYER_END_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedScalarFieldContainer[int]
    layer_begin: int
    layer_end: int
    part: PagePart
    rank: int
    def __init__(self, pages: _Optional[_Iterable[int]] = ..., layer_begin: _Optional[int] = ..., layer_end: _Optional[int] = ..., part: _Optional[_Union[PagePart, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class PagePart(_message.Message):
    __slots__ = ("position", "num_positions", "head", "num_heads")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    position: int
    num_positions: int
    head: int
    num_heads: int
    def __init__(self, position: _Optional[int] = ..., num_positions: _Optional[int] = ..., head: _Optional[int] = ..., num_heads: _Optional[int] = ...) -> None: ...

class PageChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class GenerationsRequest(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, pages: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerationsReply(_message.Message):
    __slots__ = ("generations",)
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, generations: _Optional[_Iterable[int]] = ...) -> None: ...
