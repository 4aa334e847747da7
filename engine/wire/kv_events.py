"""The public feed of a worker's prefix cache: what goes over its two ZMQ sockets. Encoding only, no sockets.

XPUB    [topic, sequence, payload], in the schema that consumers of vLLM's and SGLang's events read: sequence is 8
        bytes, big-endian; payload is msgpack, positional: [ts, events, data_parallel_rank], each event an array that
        begins with its name. Fields are appended only. topic is kv@WORKER@MODEL. A block is a page, its hash the
        page's key (engine/core/digest.py), which stands for the tenant's salt, the model and all tokens before it.
ROUTER  as there, [sequence] asks for the batches from that number on; each comes as [sequence, payload], then
        [-1, empty]. Besides: STATE_ASKED is answered by [STATE_ASKED, State], and SNAPSHOT_ASKED (or
        SNAPSHOT_WITH_TOKENS_ASKED) by parts [SNAPSHOT_ASKED, State, last (1 or 0), payload]: together the events of
        one batch that begins with AllBlocksCleared. Each message has an empty first part, so REQ sockets will do.

Two sockets are two connections: a snapshot may be here before the subscription has arrived there, and what is
published between the two reaches nobody. A reader therefore subscribes to a topic of its own as well (READER and
something unique, which nothing is published under) and asks [SNAPSHOT_ASKED, that topic]: the answer waits until that
subscription is there.

The sequence of one start of a worker begins at its milliseconds since 1970, shifted by 20 bits, with AllBlocksCleared:
numbers of two starts never meet, and to a reader that knows nothing of starts a new one is a gap.
"""

from array import array
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from engine.core.digest import KEY_MASK, page_key, page_keys
from engine.core.errors import InvalidRequest
from engine.core.messages import DEVICE, KVEvent, PagesCleared, PagesRemoved, PagesStored

STATE_ASKED = b"baton/state"
SNAPSHOT_ASKED = b"baton/snapshot"
SNAPSHOT_WITH_TOKENS_ASKED = b"baton/snapshot+tokens"
READER = b"baton/reader/"
"""How the topics begin by which a publisher knows whose subscription has arrived."""
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
SEQUENCE_BITS = 20
_MEDIUM = {DEVICE: "GPU", "host": "CPU"}
"""Tier -> what the field calls it."""
_TIER = {medium: tier for tier, medium in _MEDIUM.items()} | {None: DEVICE}
_S = TypeVar("_S")


class BlockStored(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Pages in chain order below `parent_block_hash`."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    """Of all these pages; empty in a snapshot that was asked for without."""
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Pages that are gone from `medium`."""

    block_hashes: list[int]
    medium: str | None


class AllBlocksCleared(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """No page is there any more."""


class KVEventBatch(msgspec.Struct, array_like=True, frozen=True):
    """What one engine step did to the cache."""

    ts: float
    """Seconds since 1970."""
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class State(msgspec.Struct, array_like=True, frozen=True):
    """The publisher's own word: who it is, and what a reader of all its batches up to `last` has."""

    worker: str
    incarnation: int
    first: int
    """The oldest batch that can be replayed."""
    last: int
    view_digest: int
    """The keys of all pages, XORed, after batch `last`."""
    num_pages: int
    page_size: int


def topic_of(worker: str, model: str) -> bytes:
    """What a worker publishes under."""
    return f"kv@{worker}@{model}".encode()


def first_sequence(start_s: float) -> int:
    """The first number of a publisher that starts at `start_s` (seconds since 1970)."""
    return int(start_s * 1000) << SEQUENCE_BITS


def sequence_to_bytes(sequence: int) -> bytes:
    """As the field writes it."""
    return sequence.to_bytes(8, "big", signed=True)


def sequence_from_bytes(data: bytes) -> int:
    """The inverse of `sequence_to_bytes`."""
    return int.from_bytes(data, "big", signed=True)


def encode_batch(ts: float, events: Sequence[KVEvent], page_size: int) -> bytes:
    """One payload."""
    return msgspec.msgpack.encode(KVEventBatch(ts, [_to_field(event, page_size) for event in events]))


def decode_batch(payload: bytes) -> list[KVEvent]:
    """The events of one payload; digests are the 8 bytes of the pages' keys. Raises InvalidRequest."""
    return [_from_field(event) for event in _decode(payload, KVEventBatch).events]


def encode_state(state: State) -> bytes:
    """For the wire."""
    return msgspec.msgpack.encode(state)


def decode_state(data: bytes) -> State:
    """The inverse of `encode_state`. Raises InvalidRequest."""
    return _decode(data, State)


def _decode(data: bytes, kind: type[_S]) -> _S:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"not a {kind.__name__} of the event feed: {error}") from error


def _to_field(event: KVEvent, page_size: int) -> BlockStored | BlockRemoved | AllBlocksCleared:
    match event:
        case PagesStored(parent, digests, tier, tokens):
            ids = array("i", tokens).tolist()
            above = page_key(parent) if parent else None
            return BlockStored(page_keys(digests), above, ids, page_size, None, _MEDIUM.get(tier, tier))
        case PagesRemoved(digests, tier):
            return BlockRemoved(page_keys(digests), _MEDIUM.get(tier, tier))
        case PagesCleared():
            return AllBlocksCleared()


def _from_field(event: BlockStored | BlockRemoved | AllBlocksCleared) -> KVEvent:
    match event:
        case BlockStored():
            above = event.parent_block_hash
            parent = b"" if above is None else _digest(above)
            tier = _TIER.get(event.medium, event.medium or DEVICE)
            return PagesStored(
                parent, tuple(map(_digest, event.block_hashes)), tier, array("i", event.token_ids).tobytes()
            )
        case BlockRemoved():
            return PagesRemoved(
                tuple(map(_digest, event.block_hashes)), _TIER.get(event.medium, event.medium or DEVICE)
            )
        case AllBlocksCleared():
            return PagesCleared()


def _digest(key: int) -> bytes:
    return (key & KEY_MASK).to_bytes(8, "little")
