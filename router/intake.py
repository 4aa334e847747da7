"""Which calls the router takes, and when each is sent: admission, fair shares, and whether workers want more."""

from engine.core.errors import Overloaded
from router.admission import Admission, Entry
from router.cost_model import CostModel, Work
from router.fair_queue import Share
from router.flow import Flow
from router.policies.base import RouteDecision
from router.window import DispatchWindow
from router.worker import WorkerState


class TooLate(Overloaded):
    """The first token is expected later than the call may wait for it."""


class Intake:
    """Owns nothing but what it is given; the supervisor asks it."""

    def __init__(self, admission: Admission, window: DispatchWindow, model: CostModel) -> None:
        self._admission = admission
        self._window = window
        self._model = model

    def enter(self, flow: Flow, now: float) -> Entry:
        """See Admission. Raises Overloaded when the call may not even wait."""
        room = self._window.is_open(now)
        return self._admission.enter(flow.key, self._share(flow), self._call_s, room=room)

    def overloaded(self) -> Overloaded:
        """What a call is told that had to go for another tenant's."""
        return self._admission.overloaded(self._call_s)

    @property
    def num_waiting(self) -> int:
        """Calls that wait here for their turn."""
        return self._admission.num_waiting

    def leave(self, flow: Flow) -> None:
        """The call is over."""
        self._admission.leave(flow.key)

    def next(self, now: float) -> int | None:
        """The waiting call that is to be sent now, if any."""
        if not self._admission.num_waiting or not self._window.is_open(now):
            return None
        return self._admission.next()

    def wants_more(self, worker: WorkerState, now: float) -> bool:
        """That worker reported: is it worth a look at the calls that wait?"""
        return self._window.limited and self._admission.num_waiting > 0 and self._window.has_room(worker, now)

    def check_slo(
        self, flow: Flow, decision: RouteDecision, computes: WorkerState, num_computing: int, now: float
    ) -> None:
        """Raise TooLate when the first token is expected after the call's objective, or its deadline.

        Expected: what waits here before it, shared out among the workers that compute prompts, then what waits at the
        worker of `decision`, then its own prompt, by the cost model's coefficients.
        """
        limit_s = min(flow.call.ttft_slo_s or flow.call.timeout_s, flow.call.timeout_s)
        cached = decision.cached_tokens
        work = computes.work(len(flow.tokens) - cached, cached, now)
        queue_ms, own_ms = self._model.prefill_ms(computes.key, work)
        before = self._admission.prompt_before(self._share(flow)) // max(num_computing, 1)
        here_ms, _ = self._model.prefill_ms(computes.key, Work(before, 0, 0))
        expected_s = (here_ms + queue_ms + own_ms) / 1000
        if expected_s > limit_s:
            message = f"the first token is expected in {expected_s:.3g} s, later than {limit_s:.3g} s"
            raise TooLate(message, retry_after_s=max(expected_s - limit_s, 0.1))

    @property
    def _call_s(self) -> float:
        return self._model.call_ms.value / 1000

    def _share(self, flow: Flow) -> Share:
        """What a call costs is its prompt and as many tokens as answers have on average."""
        call, num_prompt = flow.call, flow.num_prompt
        cost = num_prompt + min(call.sampling.max_tokens, self._model.output_tokens.value)
        return Share(call.tenant, call.weight, call.priority, cost, num_prompt)
