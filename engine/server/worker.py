"""One running worker: engine thread, gRPC server on a thread of its own, metrics. The shell of both worker packages."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.core.engine import EngineCore
from engine.core.errors import InvalidRequest, Unavailable
from engine.core.types import WorkerInfo
from engine.server.config import WorkerConfig
from engine.server.inbox import DrainAsked, Inbox, SnapshotAsked
from engine.server.kv_events.publisher import EventPublisher
from engine.server.loop import EngineLoop, LoopPorts, Transfers
from engine.server.metrics import WorkerMetrics
from engine.server.operations import OperationsServer
from engine.server.readiness import Readiness
from engine.server.request_log import RequestLog
from engine.server.role import Role
from engine.server.service import WorkerService
from engine.wire import worker_pb2 as pb
from engine.wire.tls import listen
from engine.wire.worker_client import MAX_MESSAGE_BYTES
from engine.wire.worker_pb2_grpc import add_WorkerServicer_to_server

logger = logging.getLogger(__name__)

C = TypeVar("C")
O = TypeVar("O")  # noqa: E741

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Worker"].full_name
STOP_TIMEOUT_S = 5.0
GRACE_S = 0.0
"""Sessions end at once, so that routers take their requests elsewhere at once."""

SERVER_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Two workers that were given one port must notice, not share it.
    ("grpc.so_reuseport", 0),
    # A router whose host vanished without a word is noticed by pings.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True)
class WorkerParts(Generic[C, O]):
    """What a worker package assembles; the shell runs it and closes it."""

    info: WorkerInfo
    """The address is filled in by the shell."""
    core: EngineCore
    role: Role[C, O]
    transfers: Transfers[C, O]
    inbox: Inbox
    close_engine: Callable[[], None]
    """Called last: no step is in flight and no transfer runs."""


def new_incarnation() -> int:
    """Unsigned 64 random bits: two starts of one worker never share one."""
    return secrets.randbits(64)


class RunningWorker(Generic[C, O]):
    """A worker that serves until it is stopped or dies. Make one with `start_worker` of a worker package."""

    def __init__(self, config: WorkerConfig, parts: WorkerParts[C, O]) -> None:
        """Start everything; returns when routers can connect.

        Raises:
            Unavailable: the port cannot be listened on.
        """
        self._config, self._parts = config, parts
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._stopping: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        """The server's loop, and what it waits for."""
        self._engine_loop: EngineLoop[C, O] | None = None
        self._died = self._drained = False
        self._failure = ""
        self.info = parts.info
        self.metrics = WorkerMetrics(parts.info)
        self._readiness = Readiness()
        self._operations: OperationsServer | None = None
        self._feed: EventPublisher | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="worker-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise Unavailable(self._failure)

    @property
    def metrics_port(self) -> int:
        """Of GET /metrics, /live and /ready."""
        assert self._operations is not None, "started with the worker"
        return self._operations.port

    @property
    def died(self) -> bool:
        """True when it ended although nobody asked it to; the log says why."""
        return self._died

    @property
    def drained(self) -> bool:
        """True when it ended because it was asked to drain, with or without something left at its time's end."""
        return self._drained

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the worker has ended. False: it has not yet."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """End everything within STOP_TIMEOUT_S. Idempotent; from any thread but the worker's own."""
        self.ask_to_stop()
        self._thread.join(STOP_TIMEOUT_S)

    def ask_to_stop(self) -> None:
        """Begin to stop; `wait` says when it is over. From any thread, signal handlers included."""
        if self._stopping is not None and not self._ended.is_set():
            loop, asked = self._stopping
            loop.call_soon_threadsafe(asked.set)

    def drain(self, grace_s: float) -> None:
        """Get no new work, let routers move what runs here, end when nothing is left or `grace_s` is over.

        From any thread, signal handlers included.
        """
        logger.info("worker=%s drains, for %g s at most", self.info.id, grace_s)
        self._parts.inbox.post(DrainAsked(grace_s))

    # ------------------------------------------------------------ the server's thread

    def _engine_died(self) -> None:
        self._died = True
        logger.critical("worker=%s the engine thread died; the worker ends", self.info.id)
        self.ask_to_stop()

    def _engine_drained(self) -> None:
        if not self._drained:
            self._drained = True
            logger.info("worker=%s is drained", self.info.id)
            self.ask_to_stop()

    async def _serve(self) -> None:
        asked = asyncio.Event()
        self._stopping = asyncio.get_running_loop(), asked
        parts = self._parts
        service = WorkerService(parts.inbox.post, self._config.cluster_key)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        health_service = health.aio.HealthServicer()
        try:
            if not await self._listen(server, service, health_service):
                return
            observers = (self.metrics, self._readiness, RequestLog())
            ports = LoopPorts(
                deliver=service.deliver,
                transfers=parts.transfers,
                observers=observers,
                feed=self._feed,
                died=self._engine_died,
                drained=self._engine_drained,
                clock=time.monotonic,
            )
            engine_loop = self._engine_loop = EngineLoop(parts.core, parts.role, ports, parts.inbox)
            engine_loop.start()
            heartbeat = asyncio.create_task(service.heartbeat())
            self._ready.set()
            await asked.wait()
            await health_service.enter_graceful_shutdown()
            heartbeat.cancel()
            await server.stop(GRACE_S)
        finally:
            await asyncio.to_thread(self._close)
            self._ended.set()
            self._ready.set()

    async def _listen(
        self, server: grpc.aio.Server, service: WorkerService, health_service: health.aio.HealthServicer
    ) -> bool:
        add_WorkerServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        await health_service.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        config = self._config
        try:
            port = listen(server, f"{config.host}:{config.port}", config.tls)
            self._operations = OperationsServer(
                self.metrics.registry, self._readiness, config.host, config.metrics_port
            )
            feed_labels = self._open_feed()
        except (RuntimeError, OSError) as error:
            self._failure = f"cannot listen on {config.host}, ports {config.port} and {config.metrics_port}: {error}"
            return False
        except (Unavailable, InvalidRequest) as error:
            self._failure = error.message
            return False
        host = config.advertise or config.host
        topology = (*self.info.topology, ("metrics", f"{host}:{self.metrics_port}"), *feed_labels)
        self.info = replace(self.info, address=f"{host}:{port}", topology=topology)
        service.introduce(self.info)
        await server.start()
        logger.info(
            "worker=%s incarnation=%016x roles=%s ready at %s",
            self.info.id,
            self.info.incarnation,
            ",".join(self.info.roles),
            self.info.address,
        )
        return True

    def _open_feed(self) -> tuple[tuple[str, str], ...]:
        """Publish prefix events, if asked for. Returns the labels that say where. Raises Unavailable."""
        feed = self._config.kv_events
        if feed is None:
            return ()
        inbox = self._parts.inbox
        self._feed = EventPublisher(
            feed, self.info, self._config.cluster_key, lambda with_tokens: inbox.post(SnapshotAsked(with_tokens))
        )
        host = feed.host if feed.host not in ("0.0.0.0", "::", "*") else self._config.advertise or self._config.host
        names = zip(("kv_events", "kv_replay"), self._feed.ports, strict=True)
        return tuple((name, f"{feed.scheme}://{host}:{port}") for name, port in names)

    def _close(self) -> None:
        """In the order in which the parts use each other: engine thread, transfers, engine, metrics."""
        if self._engine_loop is not None and not self._engine_loop.stop(STOP_TIMEOUT_S / 2):
            logger.error("worker=%s the engine thread did not end in time", self.info.id)
        self._parts.transfers.close()
        self._parts.close_engine()
        if self._feed is not None:
            self._feed.close()
        if self._operations is not None:
            self._operations.close()
        logger.info("worker=%s stopped", self.info.id)
