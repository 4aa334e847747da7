"""Whether workers want more prompts, or have enough to do: what is not sent yet can still be shared out fairly."""

from router.cost_model import CostModel
from router.view import ClusterView
from router.worker import WorkerState


class DispatchWindow:
    """With a limit, calls are held at the router while every worker has more than `limit_s` of prompts before it.

    A worker runs what it has by arrival and knows no tenants, so the flood of one tenant would delay everybody's
    requests there; here it delays its own. The price is a round trip between the end of a worker's work and the next
    prompt's coming, which the limit has to be longer than.
    """

    def __init__(self, view: ClusterView, model: CostModel, limit_s: float | None) -> None:
        self._view = view
        self._model = model
        self._limit_ms = None if limit_s is None else limit_s * 1000

    @property
    def limited(self) -> bool:
        """False: calls are always sent at once."""
        return self._limit_ms is not None

    def has_room(self, worker: WorkerState, now: float) -> bool:
        """Whether that worker would begin a prompt soon."""
        if self._limit_ms is None:
            return True
        return self._model.prefill_ms(worker.key, worker.work(0, 0, now))[0] <= self._limit_ms

    def is_open(self, now: float) -> bool:
        """Whether some worker would; also without any worker, since who waits for one does so with a place."""
        if self._limit_ms is None:
            return True
        computing = self._view.computing(now)
        return not computing or any(self.has_room(worker, now) for worker in computing)
