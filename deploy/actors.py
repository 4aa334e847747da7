"""What runs inside the Ray actors: thin shells around a worker's and the router's own assembly.

Actors are threaded (sync methods, a few at a time), because what they wrap has threads and loops of its own. Each
imports what it runs when it starts: a worker has no use for the router's doors, nor a router for torch, and the
service that starts them all for neither.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from deploy.supervisor import End
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
    """Ends and their reasons, the same for all. `running` is what the subclass started."""

    running: R | None = None

    def __init__(self) -> None:
        # WARNING and above reach the service's own terminal, through Ray.
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

    def ended(self) -> End:
        """Wait until it has ended."""
        started = self._started
        started.wait()
        return End("it broke, its log says why" if started.died else "it was stopped")

    def stop(self) -> None:
        """End it. Idempotent."""
        if self.running is not None:
            self.running.stop()

    @property
    def _started(self) -> R:
        if self.running is None:
            raise Unavailable("it was not started")
        return self.running


class _WorkerActor(_Actor[Worker]):
    """SIGTERM drains it: routers move what runs there, then it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._drain_grace_s = 0.0
        signal.signal(signal.SIGTERM, self._on_sigterm)  # Ray makes actors in the main thread of their process

    def ended(self) -> End:
        """Wait until it has ended; it was wanted to when it was drained."""
        end = super().ended()
        return End("it was drained", wanted=True) if self._started.drained else end

    def _on_sigterm(self, _signal: int, _frame: object) -> None:
        if self.running is None:
            sys.exit(1)  # still loading: nothing to drain
        self.running.drain(self._drain_grace_s)

    def _start(self, start_worker: Callable[[WorkerConfig], Worker], config: WorkerConfig, place: Place) -> WorkerInfo:
        import torch

        torch.set_num_threads(max(1, place.num_threads // config.engine.parallel.tp_size))  # each rank has so many
        host = "127.0.0.1" if place.is_only_node else _node_address()
        self._drain_grace_s = config.drain_grace_s
        self.running = start_worker(replace(config, host=host))
        return self.running.info


class PrefillWorker(_WorkerActor):
    """A worker that computes prompts."""

    def start(self, config: WorkerConfig, place: Place) -> WorkerInfo:
        """Load the model and serve (`config.host` is not used). Raises BatonError."""
        from prefill_worker.server import start_worker

        return self._start(start_worker, config, place)


class DecodeWorker(_WorkerActor):
    """A worker that adopts prompts and goes on from them, or runs whole requests."""

    def start(self, config: WorkerConfig, place: Place) -> WorkerInfo:
        """Load the model and serve (`config.host` is not used). Raises BatonError."""
        from decode_worker.server import start_worker

        return self._start(start_worker, config, place)


class Router(_Actor["RunningRouter"]):
    """The router and its doors."""

    def __init__(self) -> None:
        super().__init__()
        import router.server  # noqa: F401  # seconds, which pass while the workers load the model

    def start(self, model: str, config: RouterServerConfig) -> Endpoints:
        """Serve `model`, wherever this node has it (`config.model` is not used). Raises BatonError."""
        from router.server import RunningRouter

        if config.gateway.log_format:
            set_up_logging("INFO", config.gateway.log_format)
        router = self.running = RunningRouter(replace(config, model=resolve_model(model)))
        assert router.admin_port is not None, "the service asks for one"
        return Endpoints(config.host, router.port, router.grpc_port, router.admin_port)

    def add_worker(self, address: str) -> None:
        """See RouterService."""
        self._started.add_worker(address)

    def remove_worker(self, address: str) -> None:
        """See RouterService."""
        self._started.remove_worker(address)

    def status(self) -> ServiceStatus:
        """See RouterService."""
        return self._started.status()


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
