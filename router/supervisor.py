"""The one owner of every call's fate: sends attempts, settles both legs, tries again, and ends each call once."""

from dataclasses import dataclass
from enum import StrEnum

from engine.core.errors import BatonError, DeadlineExceeded, Overloaded, Unavailable
from engine.core.messages import Adopt, Generate, Prefill
from engine.core.types import FinishReason
from router.attempt import Attempt
from router.call_state import CallState, Trigger
from router.calls import CallTable
from router.chance import RandomSource
from router.config import RetryConfig
from router.cost_model import CostModel
from router.events import Effect, Emit, Fail
from router.flow import Flow
from router.hedging import AGAIN_S, Hedging
from router.intake import Intake
from router.policies.base import Policy, RouteDecision, RouteRequest
from router.prompt import PromptPages
from router.stats import RouterStats
from router.view import ClusterView
from router.worker import NO_WORK, WorkerState


class Cause(StrEnum):
    """Why an attempt is over before its call is."""

    WORKER_ERROR = "worker_error"
    HANDOFF = "handoff"
    PAIR_LOST = "pair_lost"
    """The decode worker pulls nothing from the prefill worker any more: many handoffs end of one cause."""
    PREEMPTED = "preempted"
    """The prefill worker needed the pages for more urgent requests: nobody's fault."""
    WORKER_LOST = "worker_lost"
    WORKER_HUNG = "worker_hung"
    PROTOCOL = "protocol"


@dataclass(frozen=True, slots=True)
class Failure:
    """One leg's end, told by or about `worker`."""

    cause: Cause
    worker: WorkerState
    message: str


@dataclass(frozen=True, slots=True)
class Chooser:
    """What decides where a call goes: the rule, what is known of the cluster, and chance."""

    policy: Policy
    view: ClusterView
    model: CostModel
    rng: RandomSource
    hedging: Hedging


class Supervisor:
    """Works on the calls of `table`; puts what is to be done into `effects`, which RouterCore hands out."""

    def __init__(
        self,
        table: CallTable,
        chooser: Chooser,
        intake: Intake,
        retry: RetryConfig,
        stats: RouterStats,
        effects: list[Effect],
    ) -> None:
        self._table = table
        self._chooser = chooser
        self._intake = intake
        self._retry = retry
        self._stats = stats
        self._effects = effects

    # ------------------------------------------------------------------------------------------------- arrival

    def arrive(self, flow: Flow, now: float) -> None:
        """A new call: it is sent, waits, or is refused."""
        self._stats.calls += 1
        if flow.deadline_s <= now:
            self._refuse(flow, DeadlineExceeded("the deadline has passed already"))
            return
        try:
            self._check_slo(flow, now)
            entry = self._intake.enter(flow, now)
        except Overloaded as error:
            self._refuse(flow, error)
            return
        self._table.add(flow)
        if entry.evicted is not None:
            self.fail(self._table.flows[entry.evicted], self._intake.overloaded(), now)
        if entry.placed:
            self.send(flow, now)

    def _check_slo(self, flow: Flow, now: float) -> None:
        """Raises TooLate. Without an objective nothing is asked; without a route nothing is known."""
        if flow.call.ttft_slo_s is None or not (pages := self._pages(flow)):
            return
        if decision := self._choose(flow, pages, now):
            view = self._chooser.view
            num_computing = len(view.computing(now))
            self._intake.check_slo(flow, decision, view.workers[decision.computes_prompt], num_computing, now)

    def _refuse(self, flow: Flow, error: BatonError) -> None:
        self._stats.outcomes[error.code] += 1
        self._effects.append(Fail(flow.key, error))

    # ------------------------------------------------------------------------------------------------- attempts

    def send(self, flow: Flow, now: float) -> None:
        """Begin an attempt, or wait for a worker. The call is QUEUED and has a place."""
        self._table.retries.clear(flow.key)
        pages = self._pages(flow)
        decision = pages and self._choose(flow, pages, now)
        if not pages or not decision:
            self._wait_for_worker(flow, now)
            return
        flow.trouble.unroutable_since_s = None
        self._begin(flow, pages, decision, now)
        self._stats.routes["pair" if decision.prefill else "whole"] += 1

    def _begin(self, flow: Flow, pages: PromptPages, decision: RouteDecision, now: float) -> None:
        attempt = Attempt(self._new_id(), decision, self._chooser.view.workers)
        flow.sent(attempt, now)
        self._start(attempt, flow, pages, now)
        if self._chooser.hedging.enabled and not flow.num_emitted:
            self._may_hedge(flow, attempt, now)

    def _start(self, attempt: Attempt, flow: Flow, pages: PromptPages, now: float) -> None:
        self._expect(attempt, flow, pages, now)
        self._table.by_attempt[attempt.id] = flow
        request = flow.request(attempt.id, now)
        if attempt.prefill:
            self._chooser.view.pair_breaker(attempt.prefill.worker.key, attempt.decode.worker.key).on_use(now)
            self._effects.append(attempt.prefill.start(Prefill(request), attempt.work, now))
            self._effects.append(attempt.decode.start(Adopt(request), NO_WORK, now))
        else:
            self._effects.append(attempt.decode.start(Generate(request), attempt.work, now))

    def _pages(self, flow: Flow) -> PromptPages | None:
        """None without workers: then nobody can say which model's pages they are. While one model replaces another, a
        call that has no token yet goes by the one that has been here longer.
        """
        worker = next(iter(self._chooser.view), None)
        return flow.prompt_pages(flow.model or worker.info.layout.model_hash) if worker else None

    def _choose(
        self, flow: Flow, pages: PromptPages, now: float, source: str | None = None, avoid: str | None = None
    ) -> RouteDecision | None:
        view = self._chooser.view
        cached: dict[str, int] = {}
        if flow.sampling().num_prompt_logprobs is None:
            by_slot = {worker.slot: worker for worker in view}
            for page_size in {worker.info.layout.page_size for worker in view}:
                for slot, num_pages in view.index.match(pages.digests(page_size)).items():
                    worker = by_slot.get(slot)  # other slots are of tiers that nothing is computed from
                    if worker is not None and worker.info.layout.page_size == page_size:
                        cached[worker.key] = num_pages * page_size
        request = RouteRequest(
            num_tokens=len(flow.tokens),
            max_new=flow.max_new,
            cached=cached,
            avoid=frozenset(flow.trouble.avoid | ({avoid} if avoid else set())),
            avoid_pairs=frozenset(flow.trouble.avoid_pairs),
            source=source,
            model=flow.model,
        )
        return self._chooser.policy.choose(view, request, now)

    def _expect(self, attempt: Attempt, flow: Flow, pages: PromptPages, now: float) -> None:
        """Where the prompt is computed it counts as cached from now on: the next call with it should go there too."""
        worker = attempt.computes.worker
        cached = attempt.decision.cached_tokens
        attempt.work = worker.work(len(flow.tokens) - cached, cached, now)
        page_size = worker.info.layout.page_size
        if pages.model_hash != worker.info.layout.model_hash:
            pages = flow.prompt_pages(worker.info.layout.model_hash)
        view, digests = self._chooser.view, pages.digests(page_size)
        attempt.expected = view.index.predict(worker.slot, digests, cached // page_size)
        view.watch.saw(digests, page_size, flow.tokens)

    def _new_id(self) -> int:
        while True:
            attempt = self._chooser.rng.getrandbits(64)
            if attempt and attempt not in self._table.by_attempt:
                return attempt

    def _wait_for_worker(self, flow: Flow, now: float) -> None:
        trouble = flow.trouble
        if trouble.unroutable_since_s is None:
            trouble.unroutable_since_s = now
        elif now - trouble.unroutable_since_s > self._retry.max_unroutable_s:
            self.fail(flow, Unavailable(self._why_none(flow), retry_after_s=self._retry.max_s), now)
            return
        trouble.failures_in_row += 1
        self._table.retries.set(flow.key, now + self._backoff_s(trouble.failures_in_row))

    def _why_none(self, flow: Flow) -> str:
        models = {worker.info.layout.model_hash for worker in self._chooser.view}
        if flow.model and models and flow.model not in models:
            return "no worker is left of the model that began this answer, and another one must not go on with it"
        return "no worker is ready"

    def _backoff_s(self, failures_in_row: int) -> float:
        """Exponential, between half and all of it by chance, so that calls that failed together come back apart."""
        full_s = min(self._retry.base_s * 2.0 ** min(failures_in_row - 1, 30), self._retry.max_s)
        return full_s * (0.5 + 0.5 * self._chooser.rng.random())

    # ------------------------------------------------------------------------------------------------- hedging

    def _may_hedge(self, flow: Flow, attempt: Attempt, now: float) -> None:
        """Look at the call again when its first token is late. Probabilities of a prompt must come from one attempt."""
        hedging = self._chooser.hedging
        hedging.sent()
        self._table.hedges.clear(flow.key)
        delay_s = hedging.delay_s(attempt.work.new)
        if delay_s is not None and flow.call.sampling.num_prompt_logprobs is None:
            self._table.hedges.set(flow.key, now + delay_s)

    def _hedge(self, flow: Flow, now: float) -> None:
        """Begin a second attempt beside the first, if a worker that has nothing to do can compute the prompt; else look
        again when it has taken twice as long.
        """
        late = flow.attempt
        if late is None or flow.rival or flow.state is not CallState.PREFILLING:
            return
        self._table.hedges.set(flow.key, now + max(now - late.sent_s, AGAIN_S))
        if self._intake.num_waiting:
            return
        view, pages = self._chooser.view, self._pages(flow)
        decision = pages and self._choose(flow, pages, now, avoid=late.computes.worker.key)
        if not pages or not decision:
            return
        other = view.workers[decision.computes_prompt]
        if other is late.computes.worker or other.queued_tokens or not self._chooser.hedging.take():
            return
        rival = flow.rival = Attempt(self._new_id(), decision, view.workers)
        rival.sent_s = now
        self._start(rival, flow, pages, now)
        self._table.hedges.clear(flow.key)
        self._stats.routes["hedge"] += 1

    def keep(self, flow: Flow, id: int, now: float) -> None:
        """Attempt `id` of two is first: the other one ends, and its pages go back."""
        attempt = flow.attempt_of(id)
        assert attempt is not None, "it is one of them"
        self._stats.routes["hedge_won"] += attempt is flow.rival
        other = flow.keep(attempt)
        self._chooser.hedging.observe(other.work.new, now - other.sent_s)
        self._settle(other)

    def on_first_token(self, attempt: Attempt, now: float) -> None:
        """How long it took is what others are measured by."""
        if self._chooser.hedging.enabled:
            self._chooser.hedging.observe(attempt.work.new, now - attempt.sent_s)

    # ------------------------------------------------------------------------------------------------- drain

    def move_from(self, worker: WorkerState, now: float) -> None:
        """That worker drains: what decodes there goes on elsewhere, where somebody can take its pages.

        A call whose prompt is under way to or from there is left to finish that part. Where nobody can take over,
        calls end where they are.
        """
        if not self._chooser.view.can_take_over(worker, now):
            return
        for id in list(worker.legs):
            flow = self._table.by_attempt[id]
            if flow.state is CallState.DECODING and flow.attempt and flow.attempt.decode.worker is worker:
                self._move(flow, now)

    def _move(self, flow: Flow, now: float) -> None:
        """End the attempt, which leaves its pages in the worker's cache, and begin one that computes there what little
        is missing and decodes elsewhere: to the workers a resumed call like any other.
        """
        attempt, pages = flow.attempt, self._pages(flow)
        assert attempt and pages, "it decodes somewhere"
        if flow.max_new <= 1 or flow.own_end():
            return  # it is about to end
        decision = self._choose(flow, pages, now, source=attempt.decode.worker.key)
        if decision is None:
            return
        self.emit(flow)
        self._settle(attempt)
        flow.moved()
        self._begin(flow, pages, decision, now)
        self._stats.routes["move"] += 1

    # ------------------------------------------------------------------------------------------------- failures

    def leg_failed(self, flow: Flow, attempt: Attempt, failure: Failure, now: float) -> None:
        """One leg is over: settle the other, and try again unless nothing is missing or trying is pointless."""
        others = [each for each in flow.attempts if each is not attempt]
        if others:
            self._blame(flow, attempt, failure, now)
            flow.keep(others[0])
            self._settle(attempt)
            return
        end = flow.own_end()
        if end is not None and flow.state is not CallState.PREFILLING:
            self.finish(flow, *end, now=now)
            return
        self.emit(flow)
        self._blame(flow, attempt, failure, now)
        self._settle(attempt)
        flow.leg_failed()
        self._stats.retries[failure.cause] += 1
        self._stats.resumed += flow.num_emitted > 0
        if flow.trouble.num_errors >= self._retry.max_worker_errors:
            message = f"{flow.trouble.num_errors} attempts failed, the last one on {failure.worker.info.id}"
            self.fail(flow, Unavailable(f"{message}: {failure.message}"), now)
        elif flow.trouble.failures_in_row <= 1:
            self.send(flow, now)
        else:
            self._table.retries.set(flow.key, now + self._backoff_s(flow.trouble.failures_in_row - 1))

    def _blame(self, flow: Flow, attempt: Attempt, failure: Failure, now: float) -> None:
        trouble = flow.trouble
        if failure.cause in (Cause.WORKER_ERROR, Cause.PROTOCOL):
            trouble.num_errors += 1
            trouble.avoid.add(failure.worker.key)
            failure.worker.breaker.on_failure(now)
        elif failure.cause in (Cause.HANDOFF, Cause.PAIR_LOST) and attempt.prefill:
            pair = (attempt.prefill.worker.key, attempt.decode.worker.key)
            trouble.avoid_pairs.add(pair)
            if failure.cause is Cause.HANDOFF:
                self._chooser.view.pair_breaker(*pair).on_failure(now)
            self._stats.handoff_failures += 1

    def _settle(self, attempt: Attempt) -> None:
        """Nothing of the attempt is left anywhere afterwards."""
        self._effects.extend(attempt.settle())
        self.computed(attempt)
        del self._table.by_attempt[attempt.id]

    def computed(self, attempt: Attempt) -> None:
        """The prompt's pages have been reported, or never will be: they no longer count as expected."""
        if attempt.expected:
            self._chooser.view.index.unpredict(attempt.computes.worker.slot, attempt.expected)
            attempt.expected = ()

    # ------------------------------------------------------------------------------------------------- outcomes

    def emit(self, flow: Flow) -> None:
        """Give the client what has arrived for it."""
        timing = None if flow.out.begun or not flow.attempt else flow.timing(flow.attempt.decode.worker.info.id)
        delta = flow.out.take(timing)
        if delta is not None:
            self._effects.append(Emit(flow.key, delta))

    def finish(self, flow: Flow, reason: FinishReason, stop_token: int | None, now: float) -> None:
        """The call has all its tokens."""
        attempt = flow.attempt
        assert attempt is not None, "only a call under way can finish"
        flow.end(Trigger.FINISH)
        decode_worker = attempt.decode.worker
        self._effects.extend(attempt.release_prefill())
        self._settle(attempt)
        timing = flow.timing(decode_worker.info.id)
        self._effects.append(Emit(flow.key, flow.out.take_last(reason, stop_token, timing)))
        decode_worker.breaker.on_success()
        model = self._chooser.model
        model.output_tokens.observe(flow.num_emitted)
        model.call_ms.observe((now - attempt.sent_s) * 1000)
        self._stats.output_tokens += flow.num_emitted
        self._over(flow, "finished", now)

    def fail(self, flow: Flow, error: BatonError, now: float) -> None:
        """The call ends with an error; what had arrived is given first."""
        self.emit(flow)
        attempts = flow.attempts
        flow.end(Trigger.FAIL)
        for attempt in attempts:
            self._settle(attempt)
        self._effects.append(Fail(flow.key, error))
        self._over(flow, error.code, now)

    def cancel(self, flow: Flow, now: float) -> None:
        """The client is gone."""
        attempts = flow.attempts
        flow.end(Trigger.CANCEL)
        for attempt in attempts:
            self._settle(attempt)
        self._over(flow, "cancelled", now)

    def _over(self, flow: Flow, outcome: str, now: float) -> None:
        self._stats.outcomes[outcome] += 1
        self._table.remove(flow)
        self._intake.leave(flow)
        self.send_waiting(now)

    def send_waiting(self, now: float) -> None:
        """Places may have become free: calls that wait get them, in their order."""
        while (following := self._intake.next(now)) is not None:
            self.send(self._table.flows[following], now)

    def on_report(self, worker: WorkerState, now: float) -> None:
        """That worker said how much it has to do; it may want more."""
        if self._intake.wants_more(worker, now):
            self.send_waiting(now)

    # ------------------------------------------------------------------------------------------------- time

    def on_time(self, now: float) -> None:
        """Deadlines first: nobody is tried again who has no time left."""
        for key in self._table.deadlines.pop_due(now):
            flow = self._table.flows[key]
            self.fail(flow, DeadlineExceeded(f"no answer within {flow.call.timeout_s:g} s"), now)
        self.send_waiting(now)
        for key in self._table.retries.pop_due(now):
            self.send(self._table.flows[key], now)
        for key in self._table.hedges.pop_due(now):
            self._hedge(self._table.flows[key], now)

    def retry_now(self, now: float) -> None:
        """Somebody can take work again: calls that wait for that need not wait out their backoff."""
        for key in self._table.retries.keys():
            self.send(self._table.flows[key], now)
