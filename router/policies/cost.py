"""The default policy: the route with the fewest expected milliseconds, whoever has to wait them.

    cost = queue + prefill of uncached tokens                      where the prompt is computed
         + transfer of the pages that the decode worker lacks      0 when both are the same worker
         + slowdown of everybody who decodes there                 one more row in their steps; and, where the prompt
                                                                   is computed beside them, the wait for it

So a short prompt stays where it decodes when moving it would take longer than computing it there, a long cached
prefix draws calls until the queue in front of it costs more than computing elsewhere, and nothing has a threshold.
All coefficients come from CostModel, which learns them.
"""

from dataclasses import dataclass

from router.chance import RandomSource
from router.cost_model import CostModel
from router.policies.base import Predicted, RouteDecision, RouteRequest
from router.view import ClusterView
from router.worker import WorkerState

_MAX_SIDE = 8
"""Workers of each role that are paired; more than that are first ranked on their own."""
_TIE = 1.02
"""Routes within 2 % of the cheapest are equal: the model is not better than that."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One worker in one part of a route, with what that part costs. `worker` does the part, whoever does the other."""

    worker: WorkerState
    cached: int
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    slowdown_ms: float = 0.0

    @property
    def cost_ms(self) -> float:
        return self.queue_ms + self.prefill_ms + self.slowdown_ms


class CostPolicy:
    """See the module's text. With `always_hand_over` a request stays on one worker only when no pair is possible."""

    name = "cost"

    def __init__(self, model: CostModel, rng: RandomSource, always_hand_over: bool = False) -> None:
        self._model = model
        self._rng = rng
        self._always_hand_over = always_hand_over

    def choose(self, view: ClusterView, request: RouteRequest, now: float) -> RouteDecision | None:
        """The cheapest route; equal ones by chance."""
        candidates = view.candidates(request.avoid, now)
        sources = self._best([self._prefill_side(worker, request) for worker in candidates.prefill])
        targets = self._best([self._decode_side(worker, request) for worker in candidates.decode])
        pairs = [
            self._pair(source, target, request)
            for source in sources
            for target in targets
            if request.max_new > 1
            and (source.worker.key, target.worker.key) not in request.avoid_pairs
            and view.can_hand_over(source.worker, target.worker, now)
        ]
        if pairs and self._always_hand_over:
            return self._cheapest(pairs)
        # A call that ends with its first token never decodes: any worker that computes prompts can do all of it.
        alone = candidates.whole if request.max_new > 1 else (candidates.prefill or candidates.whole)
        return self._cheapest(pairs + [self._whole(worker, request) for worker in alone])

    # ------------------------------------------------------------------------------------------------- sides

    def _best(self, sides: list[_Side]) -> list[_Side]:
        """The cheapest sides, and always the ones that hold most of the prompt: only transfer tells those apart."""
        if len(sides) <= _MAX_SIDE:
            return sides
        sides.sort(key=lambda side: side.cost_ms)
        return sides[:_MAX_SIDE] + sorted(sides[_MAX_SIDE:], key=lambda side: -side.cached)[:2]

    def _prefill_side(self, worker: WorkerState, request: RouteRequest) -> _Side:
        cached = request.cached.get(worker.key, 0)
        new, ahead = request.num_tokens - cached, worker.queued_tokens
        prefill_ms = self._model.prefill_ms(worker.key, 0, new, cached)
        queue_ms = self._model.prefill_ms(worker.key, ahead, new, cached) - prefill_ms
        return _Side(worker, cached, queue_ms=queue_ms, prefill_ms=prefill_ms)

    def _decode_side(self, worker: WorkerState, request: RouteRequest) -> _Side:
        """One more row slows the others, and they slow this one, for as long as the answer is likely to get."""
        cached = request.cached.get(worker.key, 0)
        expected_new = min(request.max_new, self._model.output_tokens.value)
        slowdown_ms = 2 * worker.num_rows * self._model.row_ms(worker.key) * expected_new
        pages = -(-(request.num_tokens - cached) // worker.info.layout.page_size)
        # A worker without room keeps the call waiting until others have ended.
        queue_ms = self._model.call_ms.value if pages > worker.free_pages else 0.0
        return _Side(worker, cached, queue_ms=queue_ms, slowdown_ms=slowdown_ms)

    # ------------------------------------------------------------------------------------------------- routes

    def _pair(self, source: _Side, target: _Side, request: RouteRequest) -> RouteDecision:
        layout = target.worker.info.layout
        pages = -(-(request.num_tokens - target.cached) // layout.page_size)
        transfer_ms = self._model.transfer_ms((source.worker.key, target.worker.key), pages * layout.page_bytes)
        predicted = Predicted(
            source.queue_ms + target.queue_ms, source.prefill_ms, transfer_ms, source.slowdown_ms + target.slowdown_ms
        )
        return RouteDecision(source.worker.key, target.worker.key, source.cached, predicted, "pair")

    def _whole(self, worker: WorkerState, request: RouteRequest) -> RouteDecision:
        """Computing the prompt holds up every row that decodes beside it, or would: at least one is counted on a
        worker that is there to decode.
        """
        source, target = self._prefill_side(worker, request), self._decode_side(worker, request)
        rows = worker.num_rows if worker.has_role("prefill") else max(worker.num_rows, 1)
        predicted = Predicted(
            source.queue_ms + target.queue_ms,
            source.prefill_ms,
            slowdown_ms=target.slowdown_ms + rows * source.prefill_ms,
        )
        return RouteDecision(None, worker.key, source.cached, predicted, "whole")

    def _cheapest(self, routes: list[RouteDecision]) -> RouteDecision | None:
        if not routes:
            return None
        limit = min(route.predicted.total_ms for route in routes) * _TIE
        return self._rng.choice([route for route in routes if route.predicted.total_ms <= limit])
