import pytest

from engine.core.errors import TransferFailed
from engine.wire import kv_pb2
from kv_transfer.host_pool import HostPool
from kv_transfer.transports import page_stream
from kv_transfer.transports.base import PageRead
from kv_transfer.transports.page_stream import PageSink, page_messages
from tests.contract.transport_rigs import LAYOUT, stamp


def source() -> HostPool:
    pool = HostPool(LAYOUT, 4)
    for page in range(4):
        stamp(pool, page, page)
    return pool


READ = PageRead(1, "a@1", (2, 0), (1, 3), 1, 4)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 127, 128, 1000, 6144, 9000, 1 << 20])
def test_what_was_cut_into_messages_of_any_size_is_put_together(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(page_stream, "CHUNK_BYTES", chunk_bytes)
    pool, here = source(), HostPool(LAYOUT, 4)
    messages = list(page_messages(pool, READ))
    chunks = [kv_pb2.PageChunk.FromString(message).data for message in messages]
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_bytes] * (len(chunks) - 1), "protobuf reads them too"
    assert b"".join(chunks) == bytes(pool.read(2, 1, 4)) + bytes(pool.read(0, 1, 4))
    assert messages == [kv_pb2.PageChunk(data=chunk).SerializeToString() for chunk in chunks]
    sink = PageSink(here, READ)
    for message in messages:
        sink.take(message)
    assert sink.num_pages == 2
    assert here.read(1, 1, 4) == pool.read(2, 1, 4) and here.read(3, 1, 4) == pool.read(0, 1, 4)
    assert not any(here.read(1, 0, 1)) and not any(here.read(0, 0, 4))


@pytest.mark.parametrize("message", [b"", b"\x0a", b"\x0a\x02x", b"\x0a\x00x", b"\x12\x01x", b"\x0a\xff\xff"])
def test_what_is_no_chunk_is_refused(message: bytes) -> None:
    with pytest.raises(TransferFailed, match="no chunk"):
        PageSink(source(), READ).take(message)


def test_more_than_was_asked_for_is_refused() -> None:
    pool = source()
    (message,) = page_messages(pool, READ)
    sink = PageSink(pool, READ)
    sink.take(message)
    with pytest.raises(TransferFailed, match="more bytes"):
        sink.take(message)
