"""A prefill worker in this process: the worker that every worker is, announced for prefill."""

from engine.models.loader import Progress
from engine.server.config import WorkerConfig
from kv_transfer.worker import Worker, run_worker

ROLES = ("prefill",)


def start_worker(config: WorkerConfig, progress: Progress | None = None) -> Worker:
    """Load the model and serve until stopped. Returns when routers can connect; may be called from any thread.

    Raises:
        BatonError: the model cannot be served, the settings do not fit, or a port cannot be listened on.
    """
    return run_worker(config, ROLES, progress)
