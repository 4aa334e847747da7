"""One running router: core, workers' sessions, HTTP and gRPC doors, on an asyncio loop in a thread of its own."""

import asyncio
import random
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from engine.core.errors import BatonError, Unavailable
from engine.core.types import WorkerInfo
from engine.server.config import LOOPBACK
from engine.server.heap import keep_what_is_loaded
from engine.wire.tls import TlsFiles, listen, read
from engine.wire.worker_client import WorkerClient
from router.admin import create_admin_app
from router.api import ServiceStatus
from router.core import RouterCore
from router.discovery import Discovery, WorkerName
from router.feeds import FeedWord
from router.gateway_process import GatewayProcess, limits_of
from router.http.app import create_app
from router.http.prompt_server import PromptServer
from router.http.protocol import BoundedProtocol
from router.http.tls import server_context
from router.kv_follower import FeedPlace, KVFollower
from router.metrics import RouterMetrics
from router.policies.registry import make_policy
from router.rpc.server import RpcDoor, add_inference, make_server
from router.server_config import RouterServerConfig
from router.service import RouterService
from router.text.model import ServedModel, load_served_model

T = TypeVar("T")

SILENCE_S = 3.0
"""A session without a frame for this long is closed; long before that its worker counts as hung."""
READY_POLL_S = 0.1
CALLS_END_S = 0.5
"""For gRPC calls to end once there is nothing left to answer them with."""
STOP_S = 3.0
"""Answers under way have this long to end once the router stops; it cuts them off at once, so it is ample."""


class RouterServer:
    """Everything of a router inside one asyncio loop."""

    def __init__(self, config: RouterServerConfig, model: ServedModel, sockets: "Sockets") -> None:
        self._config = config
        tls = config.gateway.tls
        if tls.cluster is not None:
            read(tls.cluster)  # a mistake is known at the start, not at each worker
        rng = random.Random(secrets.randbits(64))
        limits = limits_of(config)
        core = RouterCore(limits, rng, lambda model, rng: make_policy(config.policy, model, rng))
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def connect(address: str) -> WorkerClient:
            return WorkerClient(address, config.cluster_key, silence_s=SILENCE_S, tls=tls.cluster)

        def follow(worker: str, info: WorkerInfo, handle: Callable[[FeedWord], None]) -> KVFollower:
            return KVFollower(worker, FeedPlace.of(info.topology), config.cluster_key, handle)

        self.service = RouterService(core, connect, RouterMetrics(core, registry), follow=follow)
        self.gate = GatewayProcess(config.gateway, registry)
        gateway = self.gate.gateway
        app = create_app(self.service, model, self.service, config.doors, registry, gateway)
        self._http = [(_uvicorn(app, tls.clients), sockets.http)]
        if sockets.admin is not None:
            # It is asked with the cluster key itself, which must not be read on the way.
            admin_tls = None if config.admin_host in LOOPBACK else tls.clients
            admin = _uvicorn(create_admin_app(self.service, config.cluster_key, model.tokenizer.decode), admin_tls)
            self._http.append((admin, sockets.admin))
        self._discovery = Discovery(self.service, [WorkerName.parse(name) for name in config.worker_names])
        self._rpc = make_server(config.doors)
        self._door: RpcDoor = add_inference(self._rpc, self.service, model, config.doors, gateway)
        self.drain_s = 0.0
        """How long answers under way may go on once the server is told to stop."""
        self.grpc_port = 0

    def metrics(self) -> str:
        """What /metrics says."""
        return generate_latest(self._registry).decode()

    async def run(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serve until `stop`. Raises Unavailable when the gRPC port is taken, or whatever fault broke the service."""
        config = self._config
        try:
            self.grpc_port = listen(self._rpc, f"{config.host}:{config.grpc_port}", config.gateway.tls.clients)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {config.host}:{config.grpc_port}: {error}") from error
        await self.service.start()
        await self._rpc.start()
        for server, sock in self._http:
            sock.listen(server.config.backlog)  # as uvicorn will: who hears that it started can connect
        doors = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in self._http]
        loops = (self._watch_ready(), self.gate.watch(), self._discovery.run())
        watches = [asyncio.create_task(each) for each in loops]
        ends = [asyncio.create_task(each) for each in (stop.wait(), self.service.broken())]
        started.set()
        done, _ = await asyncio.wait([*ends, *doors, *watches], return_when=asyncio.FIRST_COMPLETED)
        await self._stop(doors)
        for task in (*ends, *watches):
            task.cancel()
        await asyncio.gather(*ends, *watches, return_exceptions=True)
        await asyncio.to_thread(self.gate.close)
        for task in done:
            task.result()

    async def _stop(self, doors: list[asyncio.Task[None]]) -> None:
        """No new requests, then no old ones, then no sessions.

        Health says 503 and NOT_SERVING first, then nobody can connect any more (gRPC clients get a GOAWAY), answers
        under way go on for `drain_s`, and what is left then is cut off.
        """
        await self._door.drain()
        drained = asyncio.create_task(self.service.drain(self.drain_s))
        if self.drain_s:
            await asyncio.sleep(min(self._config.gateway.drain_notice_s, self.drain_s))
        for server, _ in self._http:
            server.stop()
        rpc_stopped = asyncio.create_task(self._rpc.stop(self.drain_s + STOP_S))
        await drained
        await self.service.stop()
        await self._rpc.stop(CALLS_END_S)  # earlier than said before: whoever watches health would never end by itself
        await asyncio.wait(doors, timeout=STOP_S)
        for server, _ in self._http:
            server.force_exit = True  # whoever does not read its end is not waited for
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


def _uvicorn(app: Any, tls: TlsFiles | None = None) -> PromptServer:
    """Raises InvalidRequest for TLS files that cannot be used."""
    context = None if tls is None else server_context(tls)
    return PromptServer(
        uvicorn.Config(
            app,
            loop="none",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
            timeout_graceful_shutdown=None,  # RouterServer._stop cuts answers off itself
        )
    )


class RunningRouter:
    """A router that serves until it is stopped or broken. Methods may be called from any thread but its own."""

    def __init__(self, config: RouterServerConfig) -> None:
        """Start everything; returns when clients can connect.

        Raises:
            Unavailable: a port cannot be listened on.
            InvalidRequest: TLS files cannot be used.
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
        keep_what_is_loaded()
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

    def allow_models(self, models: frozenset[str]) -> None:
        """See RouterService."""
        server, _ = self._running

        async def allow() -> None:
            server.service.allow_models(models)

        self._call(allow())

    def metrics(self) -> str:
        """What /metrics says."""
        server, _ = self._running

        async def metrics() -> str:
            return server.metrics()

        return self._call(metrics())

    def status(self) -> ServiceStatus:
        """See RouterService."""
        server, _ = self._running

        async def status() -> ServiceStatus:
            return server.service.status()

        return self._call(status())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the router has ended. False: it has not yet."""
        return self._ended.wait(timeout_s)

    def stop(self, drain_s: float = 0.0) -> None:
        """End everything within a few seconds, after answers under way have had `drain_s`. Idempotent."""
        self.ask_to_stop(drain_s)
        self._thread.join(drain_s + STOP_S + 1.0)

    def ask_to_stop(self, drain_s: float) -> None:
        """Like `stop`, without waiting for it; `wait` does."""
        self._asked = True
        loop, stop, server = self._loop, self._stop, self._server
        if loop is not None and stop is not None and server is not None and not self._ended.is_set():
            server.drain_s = drain_s
            loop.call_soon_threadsafe(stop.set)

    def reload_tenants(self) -> None:
        """Read the tenants' file now. Raises InvalidRequest; then everything stays as it was."""
        server, _ = self._running

        async def reload() -> None:
            server.gate.reload()

        self._call(reload())

    @property
    def _running(self) -> "tuple[RouterServer, asyncio.AbstractEventLoop]":
        if self._server is None or self._loop is None or self._ended.is_set():
            raise Unavailable("the router has ended")
        return self._server, self._loop

    def _call(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._running[1]).result()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
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
