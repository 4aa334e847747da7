"""The gRPC side of a worker: sessions of routers, each with a bounded backlog, and a heartbeat."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import grpc

from engine.core.errors import InvalidRequest
from engine.core.messages import Frame
from engine.core.types import WorkerInfo, WorkerLoad
from engine.server.inbox import Event, Received, SessionClosed, SessionOpened
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_from_proto, info_to_proto
from engine.wire.frames import frame_to_proto
from engine.wire.session_key import ANSWER, WorkerSide
from engine.wire.worker_pb2_grpc import WorkerServicer

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.2
"""A router hears something at least this often, also while the engine thread waits for a long step."""
MAX_BACKLOG_BYTES = 32 << 20
"""Frames that wait for one router at most; a slower one is let go."""


class Backlog:
    """Frames that wait to be written to one router. Used from one asyncio loop."""

    def __init__(self, max_bytes: int) -> None:
        self.overflowed = asyncio.Event()
        self.last_push_s = 0.0
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._frames: deque[tuple[pb.Frame, int]] = deque()
        self._filled = asyncio.Event()

    def push(self, frame: Frame, now: float) -> None:
        """Queue one frame; past the limit everything is dropped and `overflowed` is set."""
        if self.overflowed.is_set():
            return
        message = frame_to_proto(frame)
        num_bytes = message.ByteSize()
        self.last_push_s = now
        self._frames.append((message, num_bytes))
        self._num_bytes += num_bytes
        self._filled.set()
        if self._num_bytes > self._max_bytes:
            self._frames.clear()
            self.overflowed.set()

    async def pop(self) -> pb.Frame:
        """The oldest frame; waits for one."""
        while not self._frames:
            self._filled.clear()
            await self._filled.wait()
        message, num_bytes = self._frames.popleft()
        self._num_bytes -= num_bytes
        return message


class WorkerService(WorkerServicer):
    """Joins router sessions to the engine loop. Lives in one asyncio loop; `deliver` is called from any thread."""

    def __init__(
        self,
        post: Callable[[Event], None],
        cluster_key: bytes,
        clock: Callable[[], float] = time.monotonic,
        max_backlog_bytes: int = MAX_BACKLOG_BYTES,
    ) -> None:
        """Only who knows `cluster_key` is heard: a session can run anything and end the worker."""
        self._door = WorkerSide(cluster_key)
        self._post = post
        self._clock = clock
        self._max_backlog_bytes = max_backlog_bytes
        self._info: WorkerInfo | None = None
        self._keys = itertools.count(1)
        self._backlogs: dict[int, Backlog] = {}
        self._load: WorkerLoad | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def num_sessions(self) -> int:
        """Routers that are connected."""
        return len(self._backlogs)

    def introduce(self, info: WorkerInfo) -> None:
        """Say who this worker is, once its address is known and before the server starts."""
        self._info = info

    def deliver(self, frames: Sequence[tuple[int, Frame]]) -> None:
        """Queue frames for their sessions; from any thread, never waits."""
        self._loop.call_soon_threadsafe(self._push, frames)

    def _push(self, frames: Sequence[tuple[int, Frame]]) -> None:
        now = self._clock()
        for key, frame in frames:
            self._load = frame.load or self._load
            backlog = self._backlogs.get(key)
            if backlog is not None:
                backlog.push(frame, now)

    async def heartbeat(self) -> None:
        """Repeat the last load report to routers that have heard nothing for a while. Runs until cancelled.

        The engine thread reports every 0.1 s unless it waits for the device, so a repeated `seq` tells a router
        that the process lives and its engine is busy (or stuck) since `reported_s`.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S / 4)
            now = self._clock()
            for backlog in self._backlogs.values():
                if self._load is not None and now - backlog.last_push_s > HEARTBEAT_S / 2:
                    backlog.push(Frame(load=self._load), now)

    # ------------------------------------------------------------ rpcs

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> pb.WorkerInfo:  # noqa: N802
        """Who this worker is."""
        await self._check_key(context)
        assert self._info is not None
        return info_to_proto(self._info)

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.Command], context: grpc.aio.ServicerContext
    ) -> None:
        """One router, until it leaves, reads too slowly or says something malformed."""
        await self._check_key(context)
        key = next(self._keys)
        backlog = self._backlogs[key] = Backlog(self._max_backlog_bytes)
        self._post(SessionOpened(key))
        logger.info("session=%d opened by %s", key, context.peer())
        tasks = [
            asyncio.create_task(coroutine)
            for coroutine in (self._read(key, requests), self._write(backlog, context), self._overflow(key, backlog))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code, details = done.pop().result()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, details)
        finally:
            for task in tasks:
                task.cancel()
            del self._backlogs[key]
            self._post(SessionClosed(key))
            logger.info("session=%d closed", key)

    async def _check_key(self, context: grpc.aio.ServicerContext) -> None:
        metadata = tuple(context.invocation_metadata() or ())
        if not self._door.knows(metadata):
            if any(name == ANSWER for name, _ in metadata):
                logger.warning("%s was refused: it does not know the cluster key", context.peer())
            context.set_trailing_metadata(self._door.greeting(metadata))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this needs the cluster key")

    async def _read(self, key: int, requests: AsyncIterator[pb.Command]) -> tuple[grpc.StatusCode, str]:
        try:
            async for message in requests:
                command = command_from_proto(message, self._clock())
                if command is None:
                    logger.warning("session=%d sent a command of a kind that this version does not know", key)
                else:
                    self._post(Received(key, command))
        except InvalidRequest as error:
            logger.error("session=%d sent a malformed command: %s", key, error)
            return grpc.StatusCode.INVALID_ARGUMENT, error.message
        return grpc.StatusCode.OK, ""

    async def _write(self, backlog: Backlog, context: grpc.aio.ServicerContext) -> tuple[grpc.StatusCode, str]:
        while True:
            await context.write(await backlog.pop())

    async def _overflow(self, key: int, backlog: Backlog) -> tuple[grpc.StatusCode, str]:
        await backlog.overflowed.wait()
        logger.error("session=%d reads too slowly: more than %d bytes wait for it", key, self._max_backlog_bytes)
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "this router reads its frames too slowly"
