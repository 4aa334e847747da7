"""Pages as the messages of a Pull stream, and back into pages: one copy on each side.

A message is a PageChunk: the key of its one field, the length, the bytes. It is written and read here by hand, since
protobuf would copy the bytes once more on either side, which costs about a third of the bandwidth.
"""

from collections.abc import Iterator

from engine.core.errors import TransferFailed
from kv_transfer.transports.base import PagePool, PageRead, fetch, store

CHUNK_BYTES = 2 << 20
"""Under gRPC's limit of 4 MiB a message."""
_KEY = 0x0A
"""Field 1, length-delimited."""
_MAX_LENGTH_BYTES = 4


def page_messages(pool: PagePool, read: PageRead) -> Iterator[bytes]:
    """What `read` asks of its pages, one after the other, in chunks of CHUNK_BYTES and a smaller last one."""
    parts: list[memoryview] = []
    room = CHUNK_BYTES
    for index in range(len(read.src)):
        view = memoryview(fetch(pool, index, read))
        while len(view):
            part, view = view[:room], view[room:]
            parts.append(part)
            room -= len(part)
            if not room:
                yield _message(parts, CHUNK_BYTES)
                parts, room = [], CHUNK_BYTES
    if parts:
        yield _message(parts, CHUNK_BYTES - room)


class PageSink:
    """Puts the bytes of a stream into the reader's pages."""

    def __init__(self, pool: PagePool, read: PageRead) -> None:
        self._pool, self._read = pool, read
        self._size = read.num_bytes(pool.layout) // len(read.dst)
        self._part = bytearray(self._size)
        """Of a page that comes in more than one message."""
        self._filled = 0
        self.num_pages = 0
        """That are complete."""

    def take(self, message: bytes) -> None:
        """The next message of the stream. Raises TransferFailed if it is none, or has more than was asked for."""
        data = _data(message)
        while len(data):
            if self.num_pages == len(self._read.dst):
                raise TransferFailed("the stream has more bytes than were asked for")
            taken, data = data[: self._size - self._filled], data[self._size - self._filled :]
            if len(taken) < self._size:
                self._part[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                if self._filled < self._size:
                    return
                taken = memoryview(self._part)
            store(self._pool, self.num_pages, self._read, taken)
            self._filled = 0
            self.num_pages += 1


def _message(parts: list[memoryview], num_bytes: int) -> bytes:
    head = bytearray((_KEY,))
    while num_bytes >= 0x80:
        head.append(num_bytes & 0x7F | 0x80)
        num_bytes >>= 7
    head.append(num_bytes)
    return b"".join((head, *parts))


def _data(message: bytes) -> memoryview:
    num_bytes = shift = 0
    for at in range(1, min(len(message), 1 + _MAX_LENGTH_BYTES)):
        num_bytes |= (message[at] & 0x7F) << shift
        shift += 7
        if message[at] < 0x80:
            data = memoryview(message)[at + 1 :]
            if message[0] == _KEY and len(data) == num_bytes:
                return data
            break
    raise TransferFailed("the stream brought something that is no chunk of pages")
