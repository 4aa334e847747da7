"""One router's connection to one worker: commands down, frames up, and knowing at once when the worker is gone."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import grpc

from engine.core.errors import InvalidRequest, Unauthenticated, Unavailable
from engine.core.messages import Command, Frame
from engine.core.types import WorkerInfo
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_to_proto, info_from_proto
from engine.wire.frames import frame_from_proto
from engine.wire.session_key import RouterSide, Sent
from engine.wire.tls import TlsFiles, channel_credentials, open_channel
from engine.wire.worker_pb2_grpc import WorkerStub

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
"""A prompt of a million tokens is 4 MB; tickets and prefix events stay far below."""

SILENT_TICKS = 4
"""Looks at a silent worker before it counts as lost."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A client connects to a worker's new incarnation at once instead of backing off for minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Two clients of one process (a router restarted inside a test, say) must not share a broken connection.
    ("grpc.use_local_subchannel_pool", 1),
)


class WorkerLost(Unavailable):
    """The stream to a worker ended, broke, or was silent for too long. A client never recovers: make a new one."""


class WorkerClient:
    """A worker as the router sees it. Use from one asyncio loop.

        client = WorkerClient("10.0.0.1:5001", cluster_key)
        info = await client.connect()
        client.send(Generate(request))
        async for frame in client.frames(): ...     # raises WorkerLost when the worker is gone
        await client.close()

    A dead worker shows as soon as the kernel closes its socket; a stopped or unreachable one after `silence_s`
    without a frame (a worker says something at least every 200 ms).
    """

    def __init__(
        self,
        address: str,
        cluster_key: bytes,
        *,
        silence_s: float = 1.0,
        connect_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        tls: TlsFiles | None = None,
    ) -> None:
        """`address` is host:port. `clock` is what the deadlines of sent requests are measured on."""
        self._tls = tls
        self._cluster_key = cluster_key
        self.address = address
        self.silence_s = silence_s
        """May be changed at any time; taken up within a quarter of the old value."""
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._call: grpc.aio.StreamStreamCall[pb.Command, pb.Frame] | None = None
        self._outbox: asyncio.Queue[pb.Command | None] = asyncio.Queue()
        self._lost: WorkerLost | None = None
        self._silent_ticks = 0

    @property
    def lost(self) -> WorkerLost | None:
        """Why this client is of no use any more, once it is."""
        return self._lost

    async def connect(self) -> WorkerInfo:
        """Ask the worker who it is and open the session. Raises WorkerLost when it cannot be reached in time."""
        try:
            credentials = channel_credentials(self._tls)
        except InvalidRequest as error:
            raise self._lose(f"cannot connect to {self.address}: {error.message}") from error
        self._channel = open_channel(self.address, credentials, CHANNEL_OPTIONS)
        stub = WorkerStub(self._channel)
        try:
            metadata = await self._greet(stub)
            info = await stub.Describe(pb.DescribeRequest(), timeout=self._connect_timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._lose(f"cannot reach worker at {self.address}: {error.details()}") from error
        except Unauthenticated as error:
            raise self._lose(f"worker at {self.address} was refused: {error.message}") from error
        self._call = stub.Session(self._commands(), metadata=metadata)
        return info_from_proto(info)

    async def _greet(self, stub: WorkerStub) -> Sent:
        """What goes with each call, once the worker has shown that it knows the key. Raises Unauthenticated."""
        own = RouterSide(self._cluster_key)
        first = stub.Describe(
            pb.DescribeRequest(), timeout=self._connect_timeout_s, metadata=own.hello(), wait_for_ready=True
        )
        if await first.code() is not grpc.StatusCode.UNAUTHENTICATED:
            await first  # raises what ended it; who hears anybody has shown nothing
        return own.reply(tuple(await first.trailing_metadata() or ()))

    def send(self, command: Command) -> None:
        """Queue one command; never waits. Raises WorkerLost when the worker is gone."""
        if self._lost is not None:
            raise self._lost
        self._outbox.put_nowait(command_to_proto(command, self._clock()))

    async def frames(self) -> AsyncIterator[Frame]:
        """Every frame of the session in order. Raises WorkerLost at its end, whatever ended it."""
        call = self._call
        if call is None:
            raise self._lose(f"not connected to {self.address}")
        watch = asyncio.create_task(self._watch(call))
        try:
            while True:
                message = await self._read(call)
                self._silent_ticks = 0
                yield frame_from_proto(message)
        finally:
            watch.cancel()

    async def close(self) -> None:
        """End the session; the worker cancels what is left of it. Idempotent."""
        self._lose(f"the session with {self.address} was closed")
        self._outbox.put_nowait(None)
        if self._channel is not None:
            await self._channel.close()

    async def _read(self, call: "grpc.aio.StreamStreamCall[pb.Command, pb.Frame]") -> pb.Frame:
        try:
            message: pb.Frame | object = await call.read()
        except asyncio.CancelledError:
            if self._lost is not None:
                raise self._lost from None  # by _watch or close; else it is the reader's own task that was cancelled
            raise
        except grpc.aio.AioRpcError as error:
            raise self._lose(f"worker at {self.address} is gone: {error.details()}") from error
        if not isinstance(message, pb.Frame):  # grpc.aio.EOF
            raise self._lose(f"worker at {self.address} ended the session")
        return message

    async def _watch(self, call: "grpc.aio.StreamStreamCall[pb.Command, pb.Frame]") -> None:
        """End a call that is silent. Counts ticks, not time: while this loop stood still itself, nothing was read."""
        while self._silent_ticks < SILENT_TICKS:
            await asyncio.sleep(self.silence_s / SILENT_TICKS)
            self._silent_ticks += 1
        self._lose(f"worker at {self.address} was silent for {self.silence_s} s")
        call.cancel()

    def _lose(self, message: str) -> WorkerLost:
        """Remember the first reason."""
        if self._lost is None:
            self._lost = WorkerLost(message)
        return self._lost

    async def _commands(self) -> AsyncIterator[pb.Command]:
        while (command := await self._outbox.get()) is not None:
            yield command
