"""One running router: core, workers' sessions, HTTP and gRPC doors, on an asyncio loop in a thread of its own."""

import asyncio
import random
import secrets
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from engine.core.errors import BatonError, Unavailable
from engine.wire.worker_client import WorkerClient
from router.admin import create_admin_app
from router.api import ServiceStatus
from router.core import RouterCore
from router.http.app import create_app
from router.http.protocol import BoundedProtocol
from router.metrics import RouterMetrics
from router.policies.registry import make_policy
from router.rpc.server import RpcDoor, add_inference, server_options
from router.server_config import RouterServerConfig
from router.service import RouterService
from router.text.model import ServedModel, load_served_model

T = TypeVar("T")

SILENCE_S = 3.0
"""A session without a frame for this long is closed; long before that its worker counts as hung."""
READY_POLL_S = 0.1
STOP_S = 3.0
"""Answers under way have this long to end once the router stops; it cuts them off at once, so it is ample."""


class RouterServer:
    """Everything of a router inside one asyncio loop."""

    def __init__(self, config: RouterServerConfig, model: ServedModel, sockets: "Sockets") -> None:
        self._config = config
        rng = random.Random(secrets.randbits(64))
        limits = replace(config.limits, salt_key=config.cluster_key)
        core = RouterCore(limits, rng, lambda model, rng: make_policy(config.policy, model, rng))
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def connect(address: str) -> WorkerClient:
            return WorkerClient(address, config.cluster_key, silence_s=SILENCE_S)

        self.service = RouterService(core, connect, RouterMetrics(core, registry))
        app = create_app(self.service, model, self.service, config.doors, registry)
        self._http = [(_uvicorn(app), sockets.http)]
        if sockets.admin is not None:
            self._http.append((_uvicorn(create_admin_app(self.service, config.cluster_key)), sockets.admin))
        self._rpc = grpc.aio.server(options=server_options(config.doors))
        self._door: RpcDoor = add_inference(self._rpc, self.service, model, config.doors)
        self.grpc_port = 0

    async def run(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serve until `stop`. Raises Unavailable when the gRPC port is taken, or whatever fault broke the service."""
        config = self._config
        try:
            self.grpc_port = self._rpc.add_insecure_port(f"{config.host}:{config.grpc_port}")
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {config.host}:{config.grpc_port}: {error}") from error
        await self.service.start()
        await self._rpc.start()
        for server, sock in self._http:
            sock.listen(server.config.backlog)  # as uvicorn will: who hears that it started can connect
        doors = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in self._http]
        watch = asyncio.create_task(self._watch_ready())
        ends = [asyncio.create_task(each) for each in (stop.wait(), self.service.broken())]
        started.set()
        done, _ = await asyncio.wait([*ends, *doors, watch], return_when=asyncio.FIRST_COMPLETED)
        await self._stop(doors)
        for task in (*ends, watch):
            task.cancel()
        await asyncio.gather(*ends, watch, return_exceptions=True)
        for task in done:
            task.result()

    async def _stop(self, doors: list[asyncio.Task[None]]) -> None:
        """No new requests, then no old ones, then no sessions."""
        await self._door.drain()
        for server, _ in self._http:
            server.should_exit = True
        rpc_stopped = asyncio.create_task(self._rpc.stop(STOP_S))
        await self.service.stop()
        await asyncio.gather(*doors, rpc_stopped, return_exceptions=True)

    async def _watch_ready(self) -> None:
        """Health clients hear of every change."""
        known: bool | None = None
        while True:
            ready = self.service.status().ready
            if ready is not known:
                await self._door.set_serving(ready)
                known = ready
            await asyncio.sleep(READY_POLL_S)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound before anything is loaded, so that a taken port is known at once."""

    http: socket.socket
    admin: socket.socket | None

    @classmethod
    def bind(cls, config: RouterServerConfig) -> "Sockets":
        """Raises Unavailable for a taken port."""
        http = _bind(config.host, config.port)
        try:
            return cls(http, None if config.admin_port is None else _bind(config.admin_host, config.admin_port))
        except Unavailable:
            http.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self.http.close()
        if self.admin is not None:
            self.admin.close()


def _bind(host: str, port: int) -> socket.socket:
    # The protocol is named because asyncio turns Nagle's delay off only where it is: else a stream's first event waits
    # for the client's delayed acknowledgement of the headers, 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def _uvicorn(app: Any) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="none",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(STOP_S),
        )
    )


class RunningRouter:
    """A router that serves until it is stopped or broken. Methods may be called from any thread but its own."""

    def __init__(self, config: RouterServerConfig) -> None:
        """Start everything; returns when clients can connect.

        Raises:
            Unavailable: a port cannot be listened on.
            CheckpointError: the model's folder lacks what a router needs.
        """
        self._sockets = sockets = Sockets.bind(config)
        try:
            self._model = load_served_model(
                config.model,
                config.model_name,
                config.max_model_len,
                tool_parser=config.doors.tool_parser,
                reasoning_parser=config.doors.reasoning_parser,
            )
        except BatonError:
            sockets.close()
            raise
        self.port = int(sockets.http.getsockname()[1])
        """Of HTTP."""
        self.admin_port = None if sockets.admin is None else int(sockets.admin.getsockname()[1])
        """Of router.admin, when it is on."""
        self._asked = False
        self._config = config
        self._started = threading.Event()
        self._ended = threading.Event()
        self._failure: BatonError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: RouterServer | None = None
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._ended.is_set():
            raise self._failure or Unavailable("the router ended by a fault while it started; the log has it")

    @property
    def died(self) -> bool:
        """True when it ended although nobody asked it to; the log says why."""
        return self._ended.is_set() and not self._asked

    @property
    def grpc_port(self) -> int:
        """Of gRPC."""
        return self._running[0].grpc_port

    def add_worker(self, address: str) -> None:
        """See RouterService."""
        server, _ = self._running

        async def add() -> None:
            server.service.add_worker(address)

        self._call(add())

    def remove_worker(self, address: str, drain_s: float = 0.0) -> None:
        """See RouterService."""
        self._call(self._running[0].service.remove_worker(address, drain_s))

    def status(self) -> ServiceStatus:
        """See RouterService."""
        server, _ = self._running

        async def status() -> ServiceStatus:
            return server.service.status()

        return self._call(status())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the router has ended. False: it has not yet."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """End everything within a few seconds. Idempotent."""
        self._asked = True
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not self._ended.is_set():
            loop.call_soon_threadsafe(stop.set)
        self._thread.join(STOP_S + 1.0)

    @property
    def _running(self) -> "tuple[RouterServer, asyncio.AbstractEventLoop]":
        if self._server is None or self._loop is None or self._ended.is_set():
            raise Unavailable("the router has ended")
        return self._server, self._loop

    def _call(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._running[1]).result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BatonError as error:
            self._failure = error
        finally:  # a fault of the code goes on to threading.excepthook, which prints it
            self._model.grammars.close()
            self._sockets.close()
            self._ended.set()
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._server = RouterServer(self._config, self._model, self._sockets)
        await self._server.run(self._started, self._stop)
