"""The engine core: every page and every request of one worker, without knowing which role it plays.

    step:  plan n+1 and launch it while step n runs, then commit step n

A row of plan n+1 whose token step n is still drawing takes it from the device. When step n turns out to end that
request, the row's token of step n+1 is dropped, and the pages that step n+1 may write come back after it.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Collection, MutableSequence, Sequence

from engine.core.config import SchedulerConfig
from engine.core.errors import IllegalEvent, InvalidRequest, Overloaded
from engine.core.executor import Executor
from engine.core.kv_cache import KVCache
from engine.core.lease import Lease
from engine.core.ledger import PageLedger
from engine.core.load import LoadMeter
from engine.core.messages import Finished, KVEvent, PagesStored, Started
from engine.core.request import Leg, RequestState, Stage
from engine.core.result import FinalPages, Reserved, StepResult
from engine.core.scheduler import Scheduler
from engine.core.types import FinishReason, Grammar, Request, StepOutput, StepPlan, TokenLogprob, WorkerLoad

__all__ = ["EngineCore", "FinalPages", "Reserved", "StepResult"]


class EngineCore:
    """Extends requests by steps. All times are `now`, seconds on the worker's own clock."""

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        *,
        model_hash: str = "",
        generations: MutableSequence[int] | None = None,
        is_compiled: Callable[[Grammar], bool] = lambda _: True,
    ) -> None:
        """`generations`: one unsigned 64-bit counter a page, in memory that peers can read; own memory when None.

        `is_compiled`: False for a grammar that rows would have to wait for. The request waits in the queue then, until
        a launch after it has become True.
        """
        self.config = config
        self.max_model_len = min(config.max_model_len, config.num_pages * config.page_size)
        """Tokens of prompt and output together that one request can have here."""
        self._executor = executor
        self._kv = KVCache(config.page_size, config.num_pages, model_hash, generations)
        self._scheduler = Scheduler(config, self._kv, is_compiled)
        self._states: dict[int, RequestState] = {}
        self._filling: dict[int, Lease] = {}
        """Leases with transfers in flight, by the id of the request they are or were for."""
        self._in_flight: deque[tuple[StepPlan, list[RequestState]]] = deque()
        self._deadlines: list[tuple[float, int]] = []
        self._result = StepResult()
        self._meter = LoadMeter()
        self._ledger = PageLedger(self._kv)
        self._num_loads = 0
        self._idle = True
        """Nothing has changed since a plan came out empty."""
        self._num_accepted = 0

    # ------------------------------------------------------------ requests

    def check(self, request: Request) -> None:
        """Whether `request` could be taken now; changes nothing. Raises as submit."""
        num_tokens = len(request.tokens)
        if request.id in self._states or request.id in self._filling:
            raise InvalidRequest(f"request {request.id} is here already")
        if not 0 < request.num_prompt <= num_tokens:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if num_tokens > self.max_model_len:
            raise InvalidRequest(
                f"{num_tokens} tokens; this worker takes at most {self.max_model_len} of prompt and output together "
                f"(model limit {self.config.max_model_len}, "
                f"{self.config.num_pages} pages of {self.config.page_size} tokens)",
                param="prompt",
            )
        if self._scheduler.num_queued >= self.config.max_queued:
            raise Overloaded(f"{self.config.max_queued} requests wait already")

    def submit(self, request: Request, *, hold: bool = False) -> None:
        """Queue a request. `hold`: draw one token, announce FinalPages as they come, then keep the pages leased.

        A held request that truly ends with that token (stop, length) is reported Finished and holds nothing. The
        lease of a held one runs out at the request's deadline.

        Raises:
            InvalidRequest: it can never run here; the message says why.
            Overloaded: the queue is full.
        """
        self._accept(request, Leg.FIRST if hold else Leg.WHOLE)

    def abort(self, id: int) -> bool:
        """End a request at any moment and free what it holds, a held lease too. False when the id is unknown.

        Pages with a transfer in flight are quarantined until `settle` has been called for it.
        """
        state = self._states.get(id)
        if state is None:
            return False
        if state.stage is Stage.HELD:
            return self.release(id)
        self._finish(state, FinishReason.CANCELLED)
        return True

    def release(self, id: int) -> bool:
        """The handoff of a held request is over: its pages go to the cache. Idempotent; False when not held."""
        state = self._states.get(id)
        if state is None or state.stage is not Stage.HELD:
            return False
        self._drop(state)
        return True

    # ------------------------------------------------------------ incoming handoffs

    def reserve(self, request: Request) -> None:
        """Queue for destination pages of all of `request.tokens`; answered by StepResult.reserved. Raises as submit."""
        self._accept(request, Leg.LAST)

    def fill(self, id: int) -> bool:
        """A transfer into the reserved pages is about to be posted. False: the request is over, do not post it."""
        state = self._receiving(id)
        if state is None or state.lease is None:
            return False
        state.lease.fill()
        self._filling[id] = state.lease
        return True

    def narrow(self, id: int, written: Collection[int]) -> None:
        """The transfer of `id`, which is over, can still write into pages `written` only: the others become free."""
        lease = self._filling.get(id)
        if lease is None:
            raise IllegalEvent(f"request {id} has no transfer in flight")
        self._kv.narrow(lease, written)
        self._idle = False

    def settle(self, id: int) -> None:
        """One transfer of `id` is terminal: it writes no more. Exactly once for each `fill` that was True."""
        lease = self._filling.get(id)
        if lease is None:
            raise IllegalEvent(f"request {id} has no transfer in flight")
        self._kv.settle(lease)
        if not lease.num_ops:
            del self._filling[id]
        self._idle = False

    def prove(self, id: int, num_tokens: int) -> bool:
        """The pages of the first `num_tokens` tokens are proven (full pages become shareable). False: it is over.

        No transfer in flight may write to them; `num_tokens` only grows.
        """
        state = self._receiving(id)
        if state is None or state.lease is None:
            return False
        if not state.lease.num_valid <= num_tokens <= len(state.tokens):
            raise IllegalEvent(f"request {id}: {num_tokens} tokens proven after {state.lease.num_valid}")
        self._kv.publish(state.lease, state.tokens, num_tokens)
        self._idle = False
        return True

    def adopt(self, id: int, emitted: Sequence[int]) -> bool:
        """The handoff is over: append the tokens drawn elsewhere and go on from what is proven, all or less.

        With transfers still in flight the pages are quarantined and the request is computed in others.
        False: the request is over.
        """
        state = self._receiving(id)
        if state is None:
            return False
        self._scheduler.adopt(state, array("i", emitted))
        self._idle = False
        if len(state.tokens) >= state.max_len:
            self._finish(state, FinishReason.LENGTH)
        return True

    # ------------------------------------------------------------ the loop

    @property
    def has_work(self) -> bool:
        """False: `step` can do nothing before the next call of another method or `next_deadline_s`."""
        return bool(self._in_flight or not self._idle or self._result)

    def next_deadline_s(self) -> float | None:
        """When the next request or lease runs out of time, None when there is none."""
        while self._deadlines and self._deadlines[0][1] not in self._states:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def is_waiting(self) -> bool:
        """A step is under way that `commit` would wait for."""
        return bool(self._in_flight) and not self._executor.ready

    @property
    def num_in_flight(self) -> int:
        """Steps that were launched and not committed."""
        return len(self._in_flight)

    @property
    def expected_step_s(self) -> float:
        """What the device will take for the newest launched step; 0.0 unless it is one of decode like one before."""
        if not self._in_flight:
            return 0.0
        plan, _ = self._in_flight[-1]
        return self._meter.decode_s if plan.num_tokens == len(plan.ids) else 0.0

    def when_ready(self, call: Callable[[], None]) -> None:
        """See Executor."""
        self._executor.when_ready(call)

    def step(self, now: float) -> StepResult:
        """Launch the next plan if there is one, then commit the oldest step unless the device could do with more."""
        if self.launch(now) and len(self._in_flight) < self.config.max_in_flight:
            return self.take_result()
        return self.commit()

    def launch(self, now: float) -> bool:
        """Plan and launch one step, if there is room in flight and anything to compute. For own loops."""
        if len(self._in_flight) >= self.config.max_in_flight:
            self.attend(now)
            return False
        self._expire(now)
        planned = self._scheduler.plan()
        self._report_changes(now)
        if planned is None:
            self._idle = not self._in_flight
            return False
        self._executor.launch(planned[0])
        self._in_flight.append(planned)
        return True

    def attend(self, now: float) -> None:
        """What waits for no plan: who is past its deadline ends, handoffs get their pages. For own loops."""
        self._expire(now)
        self._scheduler.reserve()
        self._report_changes(now)

    def commit(self) -> StepResult:
        """Collect the oldest launched step, if any, and report all that happened. For own loops."""
        if self._in_flight:
            plan, states = self._in_flight.popleft()
            output = self._executor.collect()
            assert output.step_id == plan.step_id, "the executor answered another step"
            self._scheduler.landed(plan.step_id)
            self._result.step_id, self._result.step_s = plan.step_id, output.step_s
            if output.prompt_logprobs:
                self._commit_prompt_logprobs(plan, states, output.prompt_logprobs)
            if output.refused:
                self._refuse_rows(states, output.refused)
            self._commit_rows(plan, states, output)
            self._scheduler.reap()
            self._meter.observe(plan, output.step_s)
            self._idle = False
        return self.take_result()

    def take_result(self) -> StepResult:
        """All that happened and was not reported. For own loops, after `launch`."""
        result, self._result = self._result, StepResult()
        return result

    # ------------------------------------------------------------ views

    def load(self, now: float) -> WorkerLoad:
        """How busy this worker is."""
        self._num_loads += 1
        queued_tokens, queued_pairs = self._scheduler.queued_work
        return WorkerLoad(
            seq=self._num_loads,
            reported_s=now,
            queued_requests=self._scheduler.num_queued,
            queued_tokens=queued_tokens,
            running_rows=self._scheduler.num_running,
            free_pages=self._kv.num_available,
            num_pages=self.config.num_pages,
            step_s=self._meter.step_s,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            pages_by_state=self._ledger.lines(now),
            num_preempted=self._scheduler.num_preempted,
            queued_pairs=queued_pairs,
            view_digest=self._kv.view_digest,
        )

    def drain_events(self) -> list[KVEvent]:
        """Changes of the prefix cache since the last call, in order."""
        return self._kv.drain_events()

    def stored_pages(self, with_tokens: bool = False) -> list[PagesStored]:
        """The whole prefix cache as PagesStored events, parents first: what a router needs to resynchronize."""
        return self._kv.stored_pages(with_tokens)

    @property
    def num_cached_pages(self) -> int:
        """Pages in the prefix cache, read by somebody or not."""
        return self._kv.num_cached_pages

    @property
    def view_digest(self) -> int:
        """The keys of all pages in the prefix cache, XORed: what who has heard of all events has, too."""
        return self._kv.view_digest

    def pages_by_state(self) -> dict[str, int]:
        """free, cached, shared, leased, reserved, filling, quarantined; they add up to num_pages."""
        return self._kv.pages_by_state()

    @property
    def is_empty(self) -> bool:
        """No request is here, no page is held for anybody, and no step is in flight."""
        return not (self._states or self._in_flight or self._kv.leases)

    def page_fault(self) -> str:
        """What is wrong with the count of pages, in words; empty when every page is where it should be. Cheap."""
        return self._ledger.fault(idle=not (self._states or self._filling or self._in_flight))

    def check_integrity(self) -> None:
        """Recompute the truth from every owner; AssertionError says which invariant broke."""
        self._kv.check_integrity()
        self._scheduler.check_integrity()
        for id, state in self._states.items():
            assert id == state.id and state.stage is not Stage.ENDED, "an ended request is kept"
            assert (state.lease is None) == (state.stage is Stage.QUEUED), "pages and stage disagree"
        assert all(lease.num_ops for lease in self._filling.values()), "a settled lease is kept"

    # ------------------------------------------------------------ arrivals and ends

    def _accept(self, request: Request, leg: Leg) -> None:
        self.check(request)
        num_tokens, max_tokens = len(request.tokens), request.sampling.max_tokens
        max_len = max(num_tokens, min(request.num_prompt + max_tokens, self.max_model_len))
        self._idle = False
        if max_len == num_tokens and (leg is Leg.LAST or request.sampling.num_prompt_logprobs is None):
            self._result.finished.append(Finished(request.id, FinishReason.LENGTH))
            return
        if leg is Leg.FIRST:
            leg, max_len = (leg, num_tokens + 1) if max_len > num_tokens + 1 else (Leg.WHOLE, max_len)
        self._num_accepted += 1
        state = RequestState(request, self._num_accepted, max_len, leg)
        if leg is Leg.LAST:
            # The leg that computed the prompt reports the start and what it found there.
            state.started, state.num_logprobs = True, request.num_prompt - 1
        self._states[request.id] = state
        self._scheduler.enqueue(state)
        heapq.heappush(self._deadlines, (request.deadline_s, request.id))
        if len(self._deadlines) > 2 * len(self._states) + 64:  # most are of requests that ended long before
            self._deadlines = [(kept.request.deadline_s, id) for id, kept in self._states.items()]
            heapq.heapify(self._deadlines)

    def _drop(self, state: RequestState) -> None:
        self._scheduler.end(state)
        del self._states[state.id]
        self._idle = False

    def _finish(self, state: RequestState, reason: FinishReason, stop_token: int | None = None) -> None:
        self._drop(state)
        self._result.finished.append(Finished(state.id, reason, stop_token=stop_token))

    def _expire(self, now: float) -> None:
        """End what is past its deadline; the lease of a held request just runs out."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id = heapq.heappop(self._deadlines)
            state = self._states.get(id)
            if state is None or state.request.deadline_s > now:
                continue
            if state.stage is Stage.HELD:
                self._drop(state)
                self._result.expired.append(id)
            else:
                self._finish(state, FinishReason.DEADLINE)

    def _receiving(self, id: int) -> RequestState | None:
        state = self._states.get(id)
        return state if state is not None and state.stage is Stage.RECEIVING else None

    # ------------------------------------------------------------ results

    def _report_changes(self, now: float) -> None:
        changes = self._scheduler.take_changes()
        for state in changes.retracted:
            self._drop(state)
            self._result.retracted.append(state.id)
        for state in changes.admitted:
            assert state.lease is not None, "admitted without pages"
            if state.stage is Stage.RECEIVING:
                num_local, num_tokens = state.lease.num_valid, len(state.tokens)
                self._result.reserved.append(Reserved(state.id, num_local, num_tokens, list(state.lease.pages)))
                continue
            if not state.started:
                state.started = True
                self._result.started.append(Started(state.id, state.num_computed, now - state.request.arrival_s))
            if state.leg is Leg.FIRST:
                self._announce(state, state.num_computed, last=False)

    def _announce(self, state: RequestState, end: int, *, last: bool) -> None:
        """Pages [num_announced, end) of a held request are final; a partial page only when it is the last."""
        page_size = self.config.page_size
        begin, num_pages = state.num_announced // page_size, -(-end // page_size) if last else end // page_size
        if num_pages <= begin:
            return
        assert state.lease is not None
        pages = state.lease.pages[begin:num_pages]
        end = end if last else num_pages * page_size
        generations = self._kv.generations(pages)
        self._result.final_pages.append(FinalPages(state.id, state.num_announced, end, pages, generations, last))
        state.num_announced = end

    def _commit_rows(self, plan: StepPlan, states: list[RequestState], output: StepOutput) -> None:
        """Take each row's progress and token; a row whose request ended meanwhile is dropped. Hot loop."""
        running, draining = Stage.RUNNING, Stage.DRAINING
        columns = zip(states, plan.starts, plan.num_new, plan.samples, output.tokens, strict=True)
        rows: list[int] = []
        for row, (state, start, num_new, sampled, token) in enumerate(columns):
            if state.stage is not running and state.stage is not draining:
                continue
            state.num_computed = start + num_new
            if start < state.num_known:
                self._extended(state, done=sampled)
            if not sampled:
                if state.num_computed >= state.max_len:
                    self._finish(state, FinishReason.LENGTH)
                continue
            rows.append(row)
            state.tokens.append(token)
            num_tokens, sampling = len(state.tokens), state.request.sampling
            if token in sampling.stop_token_ids and (
                num_tokens > state.request.num_prompt + sampling.min_tokens or sampling.grammar is not None
            ):
                self._finish(state, FinishReason.STOP, token)
            elif num_tokens >= state.max_len:
                self._complete(state)
        result = self._result
        result.ids += [plan.ids[row] for row in rows]
        result.tokens += [output.tokens[row] for row in rows]
        if output.logprobs is not None:
            result.logprobs = [output.logprobs[row] for row in rows]

    def _refuse_rows(self, states: list[RequestState], messages: dict[int, str]) -> None:
        """Nobody can draw a token for these rows. What the step drew for them is dropped with their later rows."""
        for state in states:
            if state.id in messages and state.stage in (Stage.RUNNING, Stage.DRAINING):
                self._drop(state)
                self._result.finished.append(Finished(state.id, FinishReason.REFUSED, messages[state.id]))

    def _extended(self, state: RequestState, *, done: bool) -> None:
        """Known tokens were computed: their full pages become shareable now, not at the end.

        A row that was taken away while the step ran announces nothing: it queues again without its pages, and whoever
        reserved pages of its own for them would wait for one that waits.
        """
        assert state.lease is not None
        self._kv.publish(state.lease, state.tokens, state.num_computed)
        if state.leg is Leg.FIRST and not done and state.stage is Stage.RUNNING:
            self._announce(state, state.num_computed, last=False)

    def _complete(self, state: RequestState) -> None:
        """The last token that is wanted here was drawn."""
        if state.leg is Leg.FIRST:
            self._scheduler.hold(state)
            self._announce(state, state.num_computed, last=True)
        else:
            self._finish(state, FinishReason.LENGTH)

    def _commit_prompt_logprobs(
        self, plan: StepPlan, states: list[RequestState], by_id: dict[int, list[TokenLogprob]]
    ) -> None:
        """Pass on each prompt position's entry once, also when it was computed again after a preemption."""
        for state, start in zip(states, plan.starts, strict=True):
            entries = by_id.get(state.id, [])[max(0, state.num_logprobs - start) :]
            if entries and state.stage is not Stage.ENDED:
                self._result.prompt_logprobs.append((state.id, entries))
                state.num_logprobs += len(entries)
