"""What runs inside the Ray actors: thin shells around a worker's and the router's own assembly.

Actors are threaded (sync methods, a few at a time), because what they wrap has threads and loops of its own. Each
imports what it runs when it starts: a worker has no use for the router's doors, nor a router for torch, and the
service that starts them all for neither.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from deploy.fleet.adopt import Stage
from deploy.supervisor import End
from deploy.tags import Description, Tag, prove
from engine.core.errors import Unavailable
from engine.core.types import WorkerInfo
from engine.models.hub import resolve_model
from engine.server.config import WorkerConfig
from engine.server.worker import RunningWorker
from router.api import ServiceStatus
from router.logs import set_up_logging
from router.server_config import RouterServerConfig

if TYPE_CHECKING:
    from router.server import RunningRouter

Worker = RunningWorker[Any, Any]
R = TypeVar("R", bound="Worker | RunningRouter")


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told about the node that it lands on."""

    num_threads: int
    """Its share of the cores."""
    is_only_node: bool
    """Nobody needs to reach it from elsewhere; else it listens on the node's address in the cluster."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients connect."""

    host: str
    http_port: int
    grpc_port: int
    admin_port: int


class _Actor(Generic[R]):
    """Ends and their reasons, the same for all. `running` is what the subclass started, `info` what it says of that."""

    running: R | None = None
    info: Any = None

    def __init__(self, tag: Tag | None = None) -> None:
        """`tag` is for `describe`, where the process may outlive who started it."""
        self._tag = tag
        self._cluster_key = b""
        """From when something is started."""
        self._is_leaving = False
        self._starting = threading.Lock()
        # WARNING and above reach the service's own terminal, through Ray.
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

    def ended(self, timeout_s: float) -> End | None:
        """Wait until it has ended, or for `timeout_s`: then None. (One who asked and died does not wait for ever.)"""
        started = self._started
        if not started.wait(timeout_s):
            return None
        return End("it broke, its log says why" if started.died else "it was stopped")

    def stop(self, drain_s: float = 0.0) -> None:
        """End it. Idempotent. A router's answers under way have `drain_s`; a worker is drained by `drain`."""
        self._is_leaving = True
        if self.running is not None:
            self._stop(self.running, drain_s)

    def describe(self, nonce: bytes) -> Description:
        """What it is, for a controller that did not start it; `nonce` was drawn by that one."""
        import ray

        assert self._tag is not None, "a fleet gives each process one"
        node = ray.get_runtime_context().get_node_id()
        return Description(self._tag, self._stage, self.info, node, prove(self._cluster_key, nonce))

    def end_in(self, delay_s: float) -> None:
        """End the process then, also if nobody is there any more to do it, and give back what was set aside for it."""
        import ray

        self._is_leaving = True
        group = ray.util.get_current_placement_group()

        def end() -> None:
            self.stop()
            if group is not None:
                ray.util.remove_placement_group(group)
            os._exit(0)

        timer = threading.Timer(delay_s, end)
        timer.daemon = True
        timer.start()

    @property
    def _stage(self) -> Stage:
        if self.running is None:
            return Stage.STARTING if self._cluster_key else Stage.EMPTY
        if self.running.wait(0.0):
            return Stage.ENDED
        return Stage.DRAINING if self._is_leaving else Stage.RUNNING

    def _stop(self, running: R, drain_s: float) -> None:
        running.stop()

    @property
    def _started(self) -> R:
        if self.running is None:
            raise Unavailable("it was not started")
        return self.running


class _WorkerActor(_Actor[Worker]):
    """SIGTERM drains it: routers move what runs there, then it ends. The model stays for another role."""

    def __init__(self, tag: Tag | None = None) -> None:
        super().__init__(tag)
        self._drain_grace_s = 0.0
        self._signalled = False
        self._again: Callable[[tuple[str, ...]], Worker] | None = None
        self._close_engine: Callable[[], None] = lambda: None
        """At the very end: until then another role may want it."""
        signal.signal(signal.SIGTERM, self._on_sigterm)  # Ray makes actors in the main thread of their process

    def ended(self, timeout_s: float) -> End | None:
        """As of any process; the end was wanted when it was drained."""
        end = super().ended(timeout_s)
        drained = end is not None and self._started.drained
        return End("it was drained", wanted=True, signalled=self._signalled) if drained else end

    def _stop(self, running: Worker, drain_s: float) -> None:
        running.stop()
        self._close_engine()

    def drain(self, grace_s: float) -> None:
        """See RunningWorker; returns at once, `ended` waits."""
        self._is_leaving = True
        self._started.drain(grace_s)

    def change_role(self, role: str, tag: Tag) -> WorkerInfo:
        """Serve again once it is drained, for that role, as a new incarnation, with the model that is loaded.

        Raises Unavailable when something is left of the old role's requests.
        """
        before = self._started
        if not before.wait(0.0) or before.died or self._again is None:
            raise Unavailable("only a drained worker can change its role")
        running = self._again((role,))
        self._tag, self.info, self.running, self._is_leaving = tag, running.info, running, False
        return running.info

    def _on_sigterm(self, _signal: int, _frame: object) -> None:
        if self.running is None:
            sys.exit(1)  # still loading: nothing to drain
        self._signalled = self._is_leaving = True
        self.running.drain(self._drain_grace_s)

    def _start_once(self, roles: tuple[str, ...], config: WorkerConfig, place: Place) -> WorkerInfo:
        """Whoever asks while it loads, or later, gets the same answer."""
        with self._starting:
            if self.running is None:
                self._cluster_key = config.cluster_key
                running = self._start(roles, config, place)
                self.info, self.running = running.info, running
            info: WorkerInfo = self.info
            return info

    def _start(self, roles: tuple[str, ...], config: WorkerConfig, place: Place) -> Worker:
        import torch

        from engine.runtime.build import build_engine
        from kv_transfer.worker import serve_engine

        torch.set_num_threads(max(1, place.num_threads // config.engine.parallel.tp_size))  # each rank has so many
        host = "127.0.0.1" if place.is_only_node else _node_address()
        self._drain_grace_s = config.drain_grace_s
        config = replace(config, host=host, topology=(*config.topology, ("node", host)))
        engine = build_engine(config.engine)

        def serve(roles: tuple[str, ...], port: int = 0) -> Worker:
            if not engine.core.is_empty:
                raise Unavailable("requests are left there, so its model must be loaded again")
            return serve_engine(engine, replace(config, port=port), roles, close_engine=lambda: None)

        self._again, self._close_engine = serve, engine.close
        return serve(roles, config.port)


class PrefillWorker(_WorkerActor):
    """A worker that computes prompts."""

    def start(self, config: WorkerConfig, place: Place) -> WorkerInfo:
        """Load the model and serve (`config.host` is not used). Raises BatonError."""
        from prefill_worker.server import ROLES

        return self._start_once(ROLES, config, place)


class DecodeWorker(_WorkerActor):
    """A worker that adopts prompts and goes on from them, or runs whole requests."""

    def start(self, config: WorkerConfig, place: Place) -> WorkerInfo:
        """Load the model and serve (`config.host` is not used). Raises BatonError."""
        from decode_worker.server import ROLES

        return self._start_once(ROLES, config, place)


class Router(_Actor["RunningRouter"]):
    """The router and its doors. SIGTERM drains it: nobody new is let in, answers under way go on for a while."""

    def __init__(self, tag: Tag | None = None) -> None:
        super().__init__(tag)
        import router.server  # noqa: F401  # seconds, which pass while the workers load the model

        self._drain_s = 0.0
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, _signal: int, _frame: object) -> None:
        if self.running is None:
            sys.exit(1)  # still starting
        self._is_leaving = True
        self.running.ask_to_stop(self._drain_s)

    def _stop(self, running: "RunningRouter", drain_s: float) -> None:
        running.stop(drain_s)

    def start(self, model: str, config: RouterServerConfig, drain_s: float = 30.0) -> Endpoints:
        """Serve `model`, wherever this node has it (`config.model` is not used). Raises BatonError."""
        from router.server import RunningRouter

        with self._starting:
            if self.running is None:
                self._cluster_key, self._drain_s = config.cluster_key, drain_s
                if config.gateway.log_format:
                    set_up_logging("INFO", config.gateway.log_format)
                router = RunningRouter(replace(config, model=resolve_model(model)))
                assert router.admin_port is not None, "the service asks for one"
                self.info = Endpoints(config.host, router.port, router.grpc_port, router.admin_port)
                self.running = router
            info: Endpoints = self.info
            return info

    def add_worker(self, address: str) -> None:
        """See RouterService."""
        self._started.add_worker(address)

    def remove_worker(self, address: str) -> None:
        """See RouterService."""
        self._started.remove_worker(address)

    def allow_models(self, models: frozenset[str]) -> None:
        """See RouterService."""
        self._started.allow_models(models)

    def metrics(self) -> str:
        """What /metrics says."""
        return self._started.metrics()

    def status(self) -> ServiceStatus:
        """See RouterService."""
        return self._started.status()


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
