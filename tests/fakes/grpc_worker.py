"""A FakeWorker behind a real gRPC server: what a router connects to when the wire is part of the test."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import grpc

from engine.core.types import WorkerInfo
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_from_proto, info_to_proto
from engine.wire.frames import frame_to_proto
from engine.wire.session_key import WorkerSide
from engine.wire.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from tests.fakes.workers import FakeWorker

STEP_S = 0.005
KEY = b"a secret of this test"


class FakeCluster:
    """Fake workers that can pull from each other. `async with` stops them all."""

    def __init__(self, key: bytes = KEY) -> None:
        """`key` is the cluster's."""
        self.key = key
        self.servers: list[GrpcWorker] = []

    async def start(self, info: WorkerInfo, port: int = 0, host: str = "127.0.0.1") -> "GrpcWorker":
        """A worker that answers from now on."""
        server = GrpcWorker(info, self)
        await server.start(port, host)
        self.servers.append(server)
        return server

    def find(self, key: str) -> FakeWorker | None:
        """The worker of that incarnation, as one that pulls from it sees it."""
        found = (server for server in self.servers if server.worker.key == key)
        return next((server.worker for server in found if server.running and not server.frozen), None)

    async def __aenter__(self) -> "FakeCluster":
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            await server.stop()


class GrpcWorker(WorkerServicer):
    """One worker process, in this one."""

    def __init__(self, info: WorkerInfo, cluster: FakeCluster) -> None:
        self.info = info
        self.worker = FakeWorker(info, Random(info.incarnation), cluster.find)
        self.running = False
        self.frozen = False
        """As if stopped by a signal: the connection stays, nothing is said."""
        self._server = grpc.aio.server()
        self._door = WorkerSide(cluster.key)

    async def start(self, port: int, host: str) -> None:
        """Listen; the address in `info` becomes the real one."""
        add_WorkerServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"{host}:{port}")
        self.info = self.worker.info = replace(self.info, address=f"{host}:{bound}")
        await self._server.start()
        self.running = True

    async def stop(self) -> None:
        """As a killed process: sessions break at once."""
        if self.running:
            self.running = False
            await self._server.stop(0)

    async def Describe(  # noqa: N802
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.WorkerInfo:
        await admit(self._door, context)
        return info_to_proto(self.info)

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.Command], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Frame]:
        await admit(self._door, context)
        reader = asyncio.create_task(self._read(requests))
        try:
            while not reader.done():
                if not self.frozen:
                    yield frame_to_proto(self.worker.step(time.monotonic()))
                await asyncio.sleep(STEP_S)
        finally:
            reader.cancel()
            self.worker.end_session()

    async def _read(self, requests: AsyncIterator[pb.Command]) -> None:
        async for message in requests:
            command = command_from_proto(message, time.monotonic())
            assert command is not None
            self.worker.on_command(command)


async def admit(door: WorkerSide, context: grpc.aio.ServicerContext) -> None:
    """As real workers do."""
    metadata = tuple(context.invocation_metadata() or ())
    if not door.knows(metadata):
        context.set_trailing_metadata(door.greeting(metadata))
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this needs the cluster key")
