"""Router sessions over real sockets: what a client sees of a worker that serves, dies, hangs or is too fast for it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from engine.core.messages import Cancel, Frame, Release
from engine.core.types import KVLayout, WorkerInfo, WorkerLoad
from engine.server.inbox import Event, Received, SessionClosed, SessionOpened
from engine.server.service import WorkerService
from engine.server.worker import SERVER_OPTIONS
from engine.wire import worker_pb2 as pb
from engine.wire.commands import info_to_proto
from engine.wire.session_key import CHALLENGE, RouterSide, Sent
from engine.wire.worker_client import WorkerClient, WorkerLost
from engine.wire.worker_pb2_grpc import WorkerServicer, WorkerStub, add_WorkerServicer_to_server

LAYOUT = KVLayout("m", 2, 2, 8, 16, "float32")
INFO = WorkerInfo("w0", 7, ("decode",), "there:1", "tiny", LAYOUT, 64, 512, (("grpc", b"d"),), (("node", "n"),))
KEY = b"the cluster key of these tests"
LOAD = WorkerLoad(1, 0.0, 0, 0, 0, 4, 4, 0.0, 0.0)


class Worker:
    """A service without an engine behind it; `heard` is what the engine thread would see."""

    def __init__(self, max_backlog_bytes: int) -> None:
        self.heard: list[Event] = []
        self._changed = asyncio.Event()
        self.service = WorkerService(self._hear, KEY, max_backlog_bytes=max_backlog_bytes)
        self.service.introduce(INFO)
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        add_WorkerServicer_to_server(self.service, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def known_to(service: WorkerService) -> Sent:
    """What a router that knows the key says with a call."""
    router = RouterSide(KEY)
    return router.reply(service._door.greeting(router.hello()))


@asynccontextmanager
async def serving(max_backlog_bytes: int = 1 << 20) -> AsyncIterator[Worker]:
    worker = Worker(max_backlog_bytes)
    await worker.server.start()
    try:
        yield worker
    finally:
        await worker.server.stop(0)


async def test_connect_says_who_the_worker_is() -> None:
    async with serving() as worker:
        client = WorkerClient(worker.address, KEY)
        assert await client.connect() == INFO
        await client.close()


async def test_commands_arrive_in_order_and_the_session_ends_with_the_client() -> None:
    async with serving() as worker:
        client = WorkerClient(worker.address, KEY)
        await client.connect()
        client.send(Cancel(1))
        client.send(Release(2))
        await worker.until(lambda: len(worker.heard) == 3)
        await client.close()
        await worker.until(lambda: len(worker.heard) == 4)
        assert worker.heard == [SessionOpened(1), Received(1, Cancel(1)), Received(1, Release(2)), SessionClosed(1)]
        assert worker.service.num_sessions == 0
        with pytest.raises(WorkerLost, match="was closed"):
            client.send(Cancel(3))


async def test_frames_go_to_their_session_in_order() -> None:
    async with serving() as worker:
        clients = [WorkerClient(worker.address, KEY) for _ in range(2)]
        for num_open, client in enumerate(clients, 1):
            await client.connect()
            # Sessions are numbered as they open.
            await worker.until(lambda num_open=num_open: len(worker.heard) == num_open)
        for step in range(3):
            worker.service.deliver([(1, Frame(step_id=step, ids=[1], tokens=[1])), (2, Frame(ids=[2], tokens=[step]))])
        first, second = (client.frames() for client in clients)
        assert [(await anext(first)).step_id for _ in range(3)] == [0, 1, 2]
        assert [(await anext(second)).tokens for _ in range(3)] == [[0], [1], [2]]
        for client in clients:
            await client.close()


async def test_a_worker_that_ends_is_lost_at_once() -> None:
    async with serving() as worker:
        client = WorkerClient(worker.address, KEY, silence_s=60.0)
        await client.connect()
        await worker.until(lambda: len(worker.heard) == 1)
        await worker.server.stop(0)
        with pytest.raises(WorkerLost):
            await anext(client.frames())
        assert client.lost is not None
        await client.close()


async def test_a_silent_worker_is_lost() -> None:
    async with serving() as worker:
        client = WorkerClient(worker.address, KEY, silence_s=0.05)
        await client.connect()
        with pytest.raises(WorkerLost, match=r"silent for 0\.05 s"):
            await anext(client.frames())
        await client.close()


async def test_a_router_that_stood_still_does_not_blame_the_worker() -> None:
    async with serving() as worker:
        client = WorkerClient(worker.address, KEY, silence_s=0.2)
        await client.connect()
        await worker.until(lambda: len(worker.heard) == 1)
        frames = client.frames()
        worker.service.deliver([(1, Frame(load=LOAD))])
        assert await anext(frames)
        reading = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        worker.service.deliver([(1, Frame(step_id=9, load=LOAD))])
        time.sleep(0.5)  # the loop, with the frame under way, is blocked for longer than a worker may be silent
        assert (await reading).step_id == 9
        await client.close()


async def test_heartbeats_keep_a_quiet_worker() -> None:
    async with serving() as worker:
        heartbeat = asyncio.create_task(worker.service.heartbeat())
        client = WorkerClient(worker.address, KEY, silence_s=5.0)
        await client.connect()
        await worker.until(lambda: len(worker.heard) == 1)
        worker.service.deliver([(1, Frame(load=LOAD))])
        frames = client.frames()
        assert [(await anext(frames)).load for _ in range(3)] == [LOAD] * 3
        heartbeat.cancel()
        await client.close()


async def test_who_takes_the_place_of_a_worker_without_the_key_is_refused_and_hears_nothing() -> None:
    class HearsAnybody(WorkerServicer):
        def __init__(self) -> None:
            self.said: list[tuple[str, str | bytes]] = []

        async def Describe(  # noqa: N802
            self, _request: pb.DescribeRequest, context: grpc.aio.ServicerContext
        ) -> pb.WorkerInfo:
            self.said += [pair for pair in context.invocation_metadata() or () if pair[0].startswith("x-baton")]
            return info_to_proto(INFO)

    server, false = grpc.aio.server(), HearsAnybody()
    add_WorkerServicer_to_server(false, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    client = WorkerClient(address, KEY)
    with pytest.raises(WorkerLost, match="was refused: it and this router do not know the same cluster key"):
        await client.connect()
    await client.close()
    await server.stop(0)
    assert [name for name, _ in false.said] == [CHALLENGE]


async def test_nobody_there_is_lost_in_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        client = WorkerClient(f"127.0.0.1:{taken.getsockname()[1]}", KEY, connect_timeout_s=0.3)
        with pytest.raises(WorkerLost, match="cannot reach"):
            await client.connect()
        with pytest.raises(WorkerLost, match="cannot reach"):
            client.send(Cancel(1))
        await client.close()


async def test_a_router_that_does_not_read_is_let_go_and_the_backlog_stays_bounded() -> None:
    async with serving(max_backlog_bytes=1 << 20) as worker:
        async with grpc.aio.insecure_channel(worker.address) as channel:
            call = WorkerStub(channel).Session(metadata=known_to(worker.service))
            await call.write(pb.Command(cancel=1))
            await worker.until(lambda: len(worker.heard) == 2)
            row = list(range(1000))
            for step in range(5_000):  # 40 MB, in whatever steps the server's thread comes round to them
                worker.service.deliver([(1, Frame(step_id=step, ids=row, tokens=row))])
            await worker.until(lambda: SessionClosed(1) in worker.heard)
            assert worker.service.num_sessions == 0


async def test_a_malformed_command_ends_its_session_only() -> None:
    async with serving() as worker:
        other = WorkerClient(worker.address, KEY)
        await other.connect()
        await worker.until(lambda: len(worker.heard) == 1)
        async with grpc.aio.insecure_channel(worker.address) as channel:
            call = WorkerStub(channel).Session(metadata=known_to(worker.service))
            await call.write(pb.Command(generate=pb.Request(tokens=b"odd")))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await worker.until(lambda: SessionClosed(2) in worker.heard)
        worker.service.deliver([(1, Frame(ids=[1], tokens=[1]))])
        assert (await anext(other.frames())).tokens == [1]
        await other.close()
