"""A prefill worker in this process."""

from engine.models.loader import Progress
from engine.runtime.build import Engine
from engine.server.config import WorkerConfig
from kv_transfer.worker import Worker, run_worker
from prefill_worker.role import PrefillRole, TicketSealer


def start_worker(config: WorkerConfig, progress: Progress | None = None) -> Worker:
    """Load the model and serve until stopped. Returns when routers can connect; may be called from any thread.

    Raises:
        BatonError: the model cannot be served, the settings do not fit, or a port cannot be listened on.
    """

    def make_role(engine: Engine, incarnation: int) -> PrefillRole:
        sealer = TicketSealer(config.worker_id, incarnation, engine.pool.layout, config.cluster_key)
        return PrefillRole(engine.core, sealer)

    return run_worker(config, make_role, progress)
