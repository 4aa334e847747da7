"""The policies of other routers, for comparison: each picks one worker of a list, once for each part of a route."""

from typing import Protocol

from router.chance import RandomSource
from router.policies.base import RouteDecision, RouteRequest
from router.view import ClusterView
from router.worker import WorkerState


class Picker(Protocol):
    """Picks one of `workers`, which is not empty."""

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """The worker to use."""


class PickingPolicy:
    """A Policy made of a picker for each role. It hands over whenever it can."""

    def __init__(self, name: str, prefill: Picker, decode: Picker) -> None:
        self.name = name
        self._prefill = prefill
        self._decode = decode

    def choose(self, view: ClusterView, request: RouteRequest, now: float) -> RouteDecision | None:
        """Pick a prefill worker, then a decode worker that may pull from it; else one worker for everything."""
        candidates = view.candidates(request.avoid, now, request.source, request.model)
        if candidates.prefill and request.may_hand_over:
            source = self._prefill(candidates.prefill, request, view)
            targets = [
                worker
                for worker in candidates.decode
                if (source.key, worker.key) not in request.avoid_pairs and view.can_hand_over(source, worker, now)
            ]
            if targets and source not in candidates.decode:
                target = self._decode(targets, request, view)
                return RouteDecision(source.key, target.key, request.cached.get(source.key, 0), reason=self.name)
        if not candidates.whole:
            return None
        worker = self._prefill(candidates.whole, request, view)
        return RouteDecision(None, worker.key, request.cached.get(worker.key, 0), reason=self.name)


def load_of(worker: WorkerState) -> tuple[int, int]:
    """Prompt tokens that wait, then rows that decode."""
    return worker.queued_tokens, worker.num_rows


class RoundRobin:
    """Each in turn, whoever is there."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """The next one."""
        self._next += 1
        return workers[self._next % len(workers)]


class RandomPick:
    """Any, equally likely."""

    def __init__(self, rng: RandomSource) -> None:
        self._rng = rng

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """One by chance."""
        return self._rng.choice(workers)


class LeastLoaded:
    """The one with the least to do; equal ones by chance."""

    def __init__(self, rng: RandomSource) -> None:
        self._rng = rng

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """The least loaded one."""
        least = min(load_of(worker) for worker in workers)
        return self._rng.choice([worker for worker in workers if load_of(worker) == least])


class PowerOfTwo:
    """The less loaded of two drawn by chance (Mitzenmacher, "The power of two choices", 2001)."""

    def __init__(self, rng: RandomSource) -> None:
        self._rng = rng

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """The better of two."""
        return min(self._rng.sample(workers, min(2, len(workers))), key=load_of)


class PrefixAffinity:
    """sgl-router's cache_aware rule and thresholds, on this router's exact index instead of its own tree of texts:
    the least loaded worker when load is uneven by both thresholds; else the longest match when it covers enough of the
    prompt; else the worker that holds least.
    """

    def __init__(self, min_match: float = 0.5, balance_abs: int = 32, balance_rel: float = 1.1) -> None:
        self._min_match = min_match
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel

    def __call__(self, workers: list[WorkerState], request: RouteRequest, view: ClusterView) -> WorkerState:
        """See the class."""
        running = [len(worker.legs) for worker in workers]
        gap, least = max(running) - min(running), min(running)
        if gap > self._balance_abs and max(running) > self._balance_rel * least:
            return workers[running.index(least)]
        best = max(workers, key=lambda worker: request.cached.get(worker.key, 0))
        if request.cached.get(best.key, 0) > self._min_match * request.num_tokens:
            return best
        return min(workers, key=lambda worker: view.index.num_pages(worker.slot))
