"""A reader that knows the field's schema and nothing of Baton: plain sockets, msgpack, positions in arrays."""

from array import array
from collections.abc import AsyncIterator
from dataclasses import replace

import msgpack
import pytest
import zmq
import zmq.asyncio

from engine.core.digest import page_digests, root_digest
from engine.core.messages import Generate
from engine.server.kv_events.config import FeedConfig
from engine.wire.worker_client import WorkerClient
from tests.fakes.router_session import RouterSession
from tests.fakes.thread_worker import Worker, on_clock, start_fake_worker
from tests.fakes.virtual_worker import PAGE_SIZE, make_request, right_tokens

END = b"\xff" * 8


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = start_fake_worker("decode", kv_events=FeedConfig("127.0.0.1", 0, 0, False), num_pages=24)
    yield worker
    worker.stop()


@pytest.fixture
async def context() -> AsyncIterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


async def replay(context: zmq.asyncio.Context, url: str, first: int) -> list[tuple[int, bytes]]:
    """What the replay socket answers, up to its end marker."""
    socket = context.socket(zmq.DEALER)
    socket.connect(url)
    await socket.send_multipart([b"", first.to_bytes(8, "big")])
    batches = []
    while True:
        empty, sequence, payload = await socket.recv_multipart()
        assert empty == b""
        if sequence == END:
            assert payload == b""
            return batches
        batches.append((int.from_bytes(sequence, "big"), payload))


async def test_events_name_tokens_and_blocks_as_the_field_does(worker: Worker, context: zmq.asyncio.Context) -> None:
    labels = dict(worker.info.topology)
    sub = context.socket(zmq.SUB)
    sub.subscribe(b"kv@decode-0@tiny")
    sub.connect(labels["kv_events"])
    prompt = make_request(1, range(1, 30), max_tokens=9, deadline_s=on_clock(60))
    prompt = replace(prompt, cache_salt=b"tenant")
    router = RouterSession(worker.info.address)
    await router.open()
    router.send(Generate(prompt))
    await router.until(lambda: bool(router.finished(1)))
    await router.idle()
    await router.close()

    batches = await replay(context, labels["kv_replay"], 0)
    numbers = [number for number, _ in batches]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(batches) > 1
    ts, events, rank = msgpack.unpackb(batches[0][1])
    assert isinstance(ts, float) and events == [["AllBlocksCleared"]] and rank is None, (
        "a start forgets what was before"
    )

    tokens: list[int] = []
    hashes: list[int] = []
    for _, payload in batches[1:]:
        for event in msgpack.unpackb(payload)[1]:
            name, block_hashes, parent, token_ids, block_size, lora_id, medium, lora_name = event
            assert (name, block_size, lora_id, medium, lora_name) == ("BlockStored", PAGE_SIZE, None, "GPU", None)
            assert parent == (hashes[-1] if hashes else None), "one chain"
            assert len(token_ids) == len(block_hashes) * block_size
            tokens += token_ids
            hashes += block_hashes
    whole = [*prompt.tokens, *right_tokens(prompt)]
    assert len(tokens) >= 29 // PAGE_SIZE * PAGE_SIZE and tokens == whole[: len(tokens)]
    names = page_digests(root_digest(b"tenant", "model"), array("i", tokens), PAGE_SIZE)
    assert hashes == [int.from_bytes(name, "little") % 2**60 for name in names]
    assert all(0 <= number < 2**63 for number in hashes), "signed or not, 64 bits are enough"

    # What is published live is the same, from wherever the subscription began.
    router = RouterSession(worker.info.address)
    await router.open()
    router.send(Generate(make_request(2, range(50, 120), max_tokens=4, deadline_s=on_clock(60))))
    while True:
        topic, sequence, payload = await sub.recv_multipart()
        assert topic == b"kv@decode-0@tiny"
        if int.from_bytes(sequence, "big") > numbers[-1]:
            break
    await router.until(lambda: bool(router.finished(2)))
    await router.close()
    after = await replay(context, labels["kv_replay"], numbers[-1] + 1)
    assert (int.from_bytes(sequence, "big"), payload) in after
    removed = [event for _, batch in after for event in msgpack.unpackb(batch)[1] if event[0] == "BlockRemoved"]
    assert removed and all(event[2] == "GPU" and set(event[1]) <= set(hashes) for event in removed)


async def test_what_is_not_understood_is_not_answered_and_ends_nothing(
    worker: Worker, context: zmq.asyncio.Context
) -> None:
    url = dict(worker.info.topology)["kv_replay"]
    socket = context.socket(zmq.DEALER)
    socket.connect(url)
    for wrong in ([b""], [b"x"], [b"", b"short"], [b"", b"x" * 9], [b"", b"", b"", b""], [b"", b"\x80" + bytes(7)]):
        await socket.send_multipart(wrong)
    assert await replay(context, url, 0)
    assert not worker.died
    client = WorkerClient(worker.info.address, b"wrong key")
    await client.close()
