"""The default policy: the route with the fewest expected milliseconds, whoever has to wait them.

    cost = queue + prefill of uncached tokens                      where the prompt is computed
         + transfer of the pages that the decode worker lacks      0 when both are the same worker
         + slowdown of others                                      whoever comes next waits for this prompt, too, and so
                                                                   does each row that decodes beside it; and one more
                                                                   row makes everybody's steps longer

So a short prompt stays where it decodes when moving it would take longer than computing it there, a long cached
prefix draws calls until the queue in front of it costs more than computing it again, and nothing has a threshold.
All coefficients come from CostModel, which learns them.
"""

from dataclasses import dataclass
from operator import itemgetter

from router.chance import RandomSource
from router.cost_model import CostModel
from router.policies.base import Predicted, RouteDecision, RouteRequest
from router.view import ClusterView
from router.worker import WorkerState

_MAX_SIDE = 6
"""Workers of each role that are paired; more than that are first ranked on their own."""
_TIE = 0.02
"""Routes that differ by less than 2 % of what the cheapest one's work costs are equal: the model is no better."""


@dataclass(slots=True)
class _Side:
    """One worker in one part of a route, with what that part costs. Mutable only because that is cheaper to make."""

    worker: WorkerState
    cached: int
    queue_ms: float
    prefill_ms: float
    slowdown_ms: float
    cost_ms: float


class CostPolicy:
    """See the module's text. With `always_hand_over` a request stays on one worker only when no pair is possible."""

    name = "cost"

    def __init__(self, model: CostModel, rng: RandomSource, always_hand_over: bool = False) -> None:
        self._model = model
        self._rng = rng
        self._always_hand_over = always_hand_over

    def choose(self, view: ClusterView, request: RouteRequest, now: float) -> RouteDecision | None:
        """The cheapest route; equal ones by chance."""
        candidates = view.candidates(request.avoid, now, request.source, request.model)
        pairs: list[tuple[float, _Side | None, _Side]] = []
        if request.may_hand_over:
            sources = _best([self._prefill_side(worker, request, now) for worker in candidates.prefill])
            targets = _best([self._decode_side(worker, request) for worker in candidates.decode])
            pairs = [
                (source.cost_ms + target.cost_ms + self._transfer_ms(source, target, request), source, target)
                for source in sources
                for target in targets
                if (source.worker.key, target.worker.key) not in request.avoid_pairs
                and view.can_hand_over(source.worker, target.worker, now)
            ]
        if pairs and self._always_hand_over:
            return self._cheapest(pairs, request)
        # A call that ends with its first token never decodes: any worker that computes prompts can do all of it.
        alone = candidates.whole if request.max_new > 1 else (candidates.prefill or candidates.whole)
        if not pairs and not any(_has_room(worker, request) for worker in alone):
            # Better to decode where prompts are computed than to wait while those workers are idle.
            alone = [*alone, *(worker for worker in candidates.prefill if worker not in alone)]
        for worker in alone:
            side = self._whole_side(worker, request, now)
            pairs.append((side.cost_ms, None, side))
        return self._cheapest(pairs, request)

    # ------------------------------------------------------------------------------------------------- parts

    def _prefill_side(self, worker: WorkerState, request: RouteRequest, now: float) -> _Side:
        cached = request.cached.get(worker.key, 0)
        new = request.num_tokens - cached
        queue_ms, prefill_ms = self._model.prefill_ms(worker.key, worker.work(new, cached, now))
        return _Side(worker, cached, queue_ms, prefill_ms, prefill_ms, queue_ms + 2 * prefill_ms)

    def _decode_side(self, worker: WorkerState, request: RouteRequest) -> _Side:
        """One more row slows the others, and they slow this one, for as long as the answer is likely to get."""
        cached = request.cached.get(worker.key, 0)
        expected_new = min(request.max_new, self._model.output_tokens.value)
        slowdown_ms = 2 * worker.num_rows * self._model.row_ms(worker.key) * expected_new
        # A worker without room keeps the call waiting until others have ended.
        queue_ms = self._model.call_ms.value if _missing_pages(worker, cached, request) > worker.free_pages else 0.0
        return _Side(worker, cached, queue_ms, 0.0, slowdown_ms, queue_ms + slowdown_ms)

    def _whole_side(self, worker: WorkerState, request: RouteRequest, now: float) -> _Side:
        """Both parts in one place: computing the prompt holds up every row that decodes there. On a worker that is
        there to decode one is always counted, since pages may come at any moment.
        """
        side, decode = self._prefill_side(worker, request, now), self._decode_side(worker, request)
        rows = worker.num_rows if worker.has_role("prefill") else max(worker.num_rows, 1)
        side.queue_ms += decode.queue_ms
        side.slowdown_ms = decode.slowdown_ms + (1 + rows) * side.prefill_ms
        side.cost_ms = side.queue_ms + side.prefill_ms + side.slowdown_ms
        return side

    def _transfer_ms(self, source: _Side, target: _Side, request: RouteRequest) -> float:
        worker = target.worker
        num_bytes = _missing_pages(worker, target.cached, request) * worker.info.layout.page_bytes
        return self._model.transfer_ms((source.worker.key, worker.key), num_bytes)

    # ------------------------------------------------------------------------------------------------- choice

    def _cheapest(self, routes: list[tuple[float, _Side | None, _Side]], request: RouteRequest) -> RouteDecision | None:
        if not routes:
            return None
        best_ms, source, target = min(routes, key=itemgetter(0))
        queue_ms = target.queue_ms + (source.queue_ms if source else 0.0)
        limit_ms = best_ms + _TIE * (best_ms - queue_ms)
        _, source, target = self._rng.choice([route for route in routes if route[0] <= limit_ms])
        if source is None:
            predicted = Predicted(target.queue_ms, target.prefill_ms, slowdown_ms=target.slowdown_ms)
            return RouteDecision(None, target.worker.key, target.cached, predicted, "whole")
        transfer_ms = self._transfer_ms(source, target, request)
        predicted = Predicted(
            source.queue_ms + target.queue_ms, source.prefill_ms, transfer_ms, source.slowdown_ms + target.slowdown_ms
        )
        return RouteDecision(source.worker.key, target.worker.key, source.cached, predicted, "pair")


def _best(sides: list[_Side]) -> list[_Side]:
    """The cheapest sides, and always the ones that hold most of the prompt: only transfer tells those apart."""
    if len(sides) <= _MAX_SIDE:
        return sides
    sides.sort(key=lambda side: side.cost_ms)
    return sides[:_MAX_SIDE] + sorted(sides[_MAX_SIDE:], key=lambda side: -side.cached)[:2]


def _has_room(worker: WorkerState, request: RouteRequest) -> bool:
    """Whether its free pages do for the prompts that wait there and this one."""
    waiting = worker.queued_tokens // worker.info.layout.page_size
    return waiting + _missing_pages(worker, request.cached.get(worker.key, 0), request) <= worker.free_pages


def _missing_pages(worker: WorkerState, cached: int, request: RouteRequest) -> int:
    return -(-(request.num_tokens - cached) // worker.info.layout.page_size)
