"""Which rows the next step extends, and by how much. Phase-free: a row has known tokens to compute, many or one.

Decode rows (one token left) come first so that their pace stays flat, then the chunks of running prompts, then new
requests while the step has room. Everything is served in `RequestState.order`: smaller priority, then earlier.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from engine.core.config import SchedulerConfig
from engine.core.kv_cache import Frontier, KVCache, PageNeed
from engine.core.lease import Lease, LeaseEvent, LeaseState
from engine.core.request import NOT_LAUNCHED, Event, Leg, RequestState, Stage
from engine.core.types import Grammar, NewRow, StepPlan

_order = attrgetter("order")


def _remove(states: list[RequestState], state: RequestState) -> None:
    index = bisect_left(states, state.order, key=_order)
    assert states[index] is state, "a request is not where its stage says"
    del states[index]


@dataclass(slots=True)
class Changes:
    """What planning did to requests, besides rows."""

    admitted: list[RequestState] = field(default_factory=list)
    """Got their pages: RUNNING or RECEIVING, unless they are over already."""
    retracted: list[RequestState] = field(default_factory=list)
    """Were preempted although others may be reading their announced pages."""


class Scheduler:
    """Owns the queue, the rows and what becomes of their pages; the engine tells it when a step was committed."""

    def __init__(self, config: SchedulerConfig, kv: KVCache, is_compiled: Callable[[Grammar], bool]) -> None:
        """`is_compiled`: a row with that grammar can draw without others' waiting for it; asked of who could run."""
        self._config = config
        self._kv = kv
        self._is_compiled = is_compiled
        self._queue: list[RequestState] = []
        self._num_remote = 0
        """Requests in the queue whose pages come from elsewhere: they need no row."""
        self._ready: list[RequestState] = []
        self._running: list[RequestState] = []
        self._waits_on: dict[int, Frontier] = {}
        """By id: the page that a queued request lets another one compute."""
        self._leaving: list[RequestState] = []
        """Lost their row while a launched step names it; their pages come back when that step is committed."""
        self._blocked: RequestState | None = None
        """The first in order of those that got no pages or no row in the last plan."""
        self._changes = Changes()
        self._draft = StepPlan(0)
        self._rows: list[RequestState] = []
        self._committed = NOT_LAUNCHED
        self.num_preempted = 0
        """Requests whose pages were taken, since the start."""

    # ------------------------------------------------------------ the life of a request

    @property
    def _max_rows(self) -> int:
        return min(self._config.max_rows, self._config.max_step_tokens)

    @property
    def num_queued(self) -> int:
        """Requests that wait for pages or a row."""
        return len(self._queue) + len(self._ready)

    @property
    def num_running(self) -> int:
        """Requests that have a row."""
        return len(self._running)

    @property
    def queued_work(self) -> tuple[int, int]:
        """(tokens, pairs): prompts' tokens that are not computed, and each of them with all tokens before it.

        Those of launched steps count: the next request waits for them, too, and for two chunks of a long prompt that is
        more than a second. A single token is a row that decodes: no work that waits.
        """
        num_tokens = num_pairs = 0
        for state in (*self._queue, *self._ready, *self._running):
            done, known = state.num_computed, len(state.tokens)
            if known - done > 1:
                num_tokens += known - done
                num_pairs += (known - done) * (known + done) // 2
        return num_tokens, num_pairs

    def enqueue(self, state: RequestState) -> None:
        """A new request."""
        insort(self._queue, state, key=_order)
        self._num_remote += state.leg is Leg.LAST

    def adopt(self, state: RequestState, tokens: "array[int]") -> None:
        """All that was wanted of a handoff has come, or will not come: `tokens` were drawn elsewhere meanwhile."""
        lease = _lease(state)
        state.leg = Leg.WHOLE
        state.tokens += tokens
        if lease.state is LeaseState.RESERVED and lease.num_valid < len(state.tokens):
            lease.apply(LeaseEvent.PROVE)
            state.apply(Event.ADOPT)
            state.num_computed = state.num_scheduled = lease.num_valid
            state.num_known = len(state.tokens)
            insort(self._ready, state, key=_order)
            return
        state.num_computed = lease.num_valid
        self._requeue(state)

    def hold(self, state: RequestState) -> None:
        """A computed request gives up its row and keeps its pages."""
        if state.stage is Stage.RUNNING:
            _remove(self._running, state)
            self._forget(state)
        state.apply(Event.HOLD)

    def end(self, state: RequestState) -> None:
        """A request is over, whatever its stage; its pages are freed as soon as nothing writes to them."""
        stage, lease = state.stage, state.lease
        state.apply(Event.END)
        if stage is Stage.QUEUED:
            self._dequeue(state)
        elif stage is Stage.READY:
            _remove(self._ready, state)
        elif stage is Stage.RUNNING:
            _remove(self._running, state)
            self._forget(state)
        if lease is None:
            return
        in_flight = stage in (Stage.RUNNING, Stage.DRAINING) and self._is_in_flight(state)
        if stage is not Stage.RECEIVING:
            self._kv.publish(lease, state.tokens, state.num_computed)
        self._kv.retire(lease, step_in_flight=in_flight)
        if in_flight and stage is Stage.RUNNING:
            self._leaving.append(state)

    # ------------------------------------------------------------ steps

    def plan(self) -> tuple[StepPlan, list[RequestState]] | None:
        """The next step and the request of each of its rows; None when there is nothing to compute."""
        num_preempted = -1
        while not self._rows and num_preempted != self.num_preempted:  # what was taken may be another's first row
            num_preempted = self.num_preempted
            self._plan_rows()
        if not self._rows:
            return None
        planned = self._draft, self._rows
        self._draft, self._rows = StepPlan(self._draft.step_id + 1), []
        return planned

    def reserve(self) -> None:
        """Pages for handoffs that wait for them, in their order: they need no step and hence no plan."""
        if self._num_remote:
            self._admit(0, None)

    def take_changes(self) -> Changes:
        """What planning did to requests since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def landed(self, step_id: int) -> None:
        """The device is done with that step: its rows are about to be committed."""
        self._committed = step_id

    def reap(self) -> None:
        """After a commit: give back the pages of rows that no launched step names any more."""
        if not self._leaving:
            return
        gone = [state for state in self._leaving if not self._is_in_flight(state)]
        self._leaving = [state for state in self._leaving if self._is_in_flight(state)]
        for state in gone:
            if state.stage is Stage.DRAINING:
                self._requeue(state)
            elif _lease(state).state is LeaseState.QUARANTINED:
                self._kv.settle(_lease(state))

    def check_integrity(self) -> None:
        """Every list is in order and holds the stages it is for."""
        for states, stage in ((self._queue, Stage.QUEUED), (self._ready, Stage.READY), (self._running, Stage.RUNNING)):
            assert all(state.stage is stage for state in states), f"a request in the wrong list for {stage}"
            assert [state.order for state in states] == sorted(state.order for state in states), "out of order"
        assert all(state.lease is None for state in self._queue), "a queued request has pages"
        assert len(self._running) <= self._max_rows, "more rows than allowed"
        assert self._num_remote == sum(state.leg is Leg.LAST for state in self._queue), "remote requests are off"
        assert self._waits_on.keys() <= {state.id for state in self._queue}, "a request waits that is not queued"

    # ------------------------------------------------------------ rows

    def _plan_rows(self) -> None:
        self._make_way()
        self._blocked = None
        for state in self._ready[:]:
            if len(self._running) >= self._max_rows:
                self._blocked = state
                break
            if self._can_draw(state):
                _remove(self._ready, state)
                self._run(state)
        extends = self._plan_decodes()
        budget = self._config.max_step_tokens - len(self._rows)
        for state in extends:
            if self._queue and self._queue[0].order < state.order:
                budget = self._admit(budget, state.order)
            if budget > 0 and state.stage is Stage.RUNNING:
                budget -= self._plan_extend(state, budget)
        if self._queue:
            self._admit(budget, None)

    def _plan_decodes(self) -> list[RequestState]:
        """Plan each running request that has one token to compute; returns those that have more.

        The hot loop: a few list appends a row. `_grow` may take requests off the end of the list meanwhile.
        """
        draft, rows, page_size = self._draft, self._rows, self._config.page_size
        ids, starts, samples, feedback, step_id = draft.ids, draft.starts, draft.samples, draft.feedback, draft.step_id
        extends: list[RequestState] = []
        for state in self._running:
            start, known, lease = state.num_scheduled, len(state.tokens), state.lease
            assert lease is not None
            if known - start > 1:
                extends.append(state)
                continue
            if start >= known and start >= state.max_len - 1:
                continue  # its last token is being drawn
            if start >= len(lease.pages) * page_size and not self._grow(state, 1):
                continue
            rows.append(state)
            ids.append(state.id)
            starts.append(start)
            samples.append(start + 1 < state.max_len)
            feedback.append(start >= known)
            state.num_scheduled = start + 1
            state.last_step = step_id
        draft.num_new = [1] * len(ids)
        return extends

    def _plan_extend(self, state: RequestState, budget: int) -> int:
        """Plan up to `budget` known tokens of a request; chunks end between pages, the last one where it must.

        Returns how many.
        """
        start, known, page_size = state.num_scheduled, len(state.tokens), self._config.page_size
        end = known
        if end - start > budget:
            end = start + budget
            aligned = end // page_size * page_size
            end = aligned if aligned > start else end
        missing = self._num_pages(end) - len(_lease(state).pages)
        if missing > 0 and not self._grow(state, missing):
            return 0
        draft = self._draft
        self._rows.append(state)
        draft.ids.append(state.id)
        draft.starts.append(start)
        draft.num_new.append(end - start)
        draft.samples.append(end == known and end < state.max_len)
        draft.feedback.append(False)
        state.num_scheduled = end
        state.last_step = draft.step_id
        return end - start

    def _grow(self, state: RequestState, num_pages: int) -> bool:
        """Append pages to a row, taking them from the last in order if need be; False: not in this step."""
        pages = self._kv.extend(_lease(state), num_pages)
        while pages is None:
            victim = self._running[-1]
            if self._leaving or (victim is not state and victim.last_step == self._draft.step_id):
                return False  # pages are about to come back, or the victim is in this very step
            self._preempt(victim)
            if victim is state:
                return False
            pages = self._kv.extend(_lease(state), num_pages)
        self._draft.new_pages.append((state.id, pages))
        return True

    def _run(self, state: RequestState) -> None:
        """Give a request a row and show it to the executor."""
        state.apply(Event.ADMIT)
        insort(self._running, state, key=_order)
        state.last_step = self._draft.step_id
        request = state.request
        self._draft.added.append(NewRow(state.id, state.tokens[:], request.num_prompt, request.sampling))
        self._draft.new_pages.append((state.id, list(_lease(state).pages)))

    def _forget(self, state: RequestState) -> None:
        """The executor need not know the row any more; if it was never launched it will not hear of it."""
        draft = self._draft
        if state.last_step == draft.step_id:
            draft.added = [row for row in draft.added if row.id != state.id]
        else:
            draft.removed.append(state.id)
        draft.new_pages = [(id, pages) for id, pages in draft.new_pages if id != state.id]

    # ------------------------------------------------------------ admission and preemption

    def _admit(self, budget: int, before: tuple[int, int] | None) -> int:
        """Pages for queued requests in order, those that come before `before`; returns the budget that is left.

        One that gets no pages holds up all behind it, so nobody starves. One that waits for another's page does not:
        what it waits for is running or being filled; nor does one whose grammar is still being compiled. Its turn comes
        as soon as that is done: a long prompt that came later and began meanwhile goes on after it.
        """
        for state in self._queue[:]:
            remote = state.leg is Leg.LAST
            if before is not None and state.order >= before:
                break
            if not remote and (budget <= 0 or len(self._running) >= self._max_rows):
                if budget > 0:
                    self._note_blocked(state)
                if not self._num_remote:
                    break
                continue
            if not remote and not self._can_draw(state):
                continue
            opened = self._open(state)
            if opened is None:
                self._note_blocked(state)
                break
            if isinstance(opened, Lease):
                self._place(state, opened)
                budget -= 0 if remote else self._plan_extend(state, budget)
        return budget

    def _can_draw(self, state: RequestState) -> bool:
        grammar = state.request.sampling.grammar
        return grammar is None or self._is_compiled(grammar)

    def _open(self, state: RequestState) -> Lease | Frontier | None:
        """A lease, the page that the request waits for, or None when there are too few pages."""
        need = self._need(state)
        frontier = self._waits_on.get(state.id)
        if frontier is not None and self._kv.is_awaited(frontier, state.request, need.state):
            return frontier
        opened = self._kv.open(state.request, state.tokens, need)
        if opened is not None and not isinstance(opened, Lease):
            self._waits_on[state.id] = opened
        return opened

    def _dequeue(self, state: RequestState) -> None:
        _remove(self._queue, state)
        self._waits_on.pop(state.id, None)
        self._num_remote -= state.leg is Leg.LAST

    def _need(self, state: RequestState) -> PageNeed:
        """Pages for all known tokens and the next one, and one for each row to grow by, so that few are preempted."""
        known, headroom = len(state.tokens), len(self._running)
        if state.leg is Leg.LAST:
            return PageNeed(self._num_pages(known), known, headroom, LeaseState.RESERVED)
        last = max(known, min(known + 1, state.max_len - 1))
        max_match, num_prompt = known - 1, state.request.num_prompt
        if state.request.sampling.num_prompt_logprobs is not None and state.num_logprobs < num_prompt - 1:
            max_match = state.num_logprobs  # the others are still to be computed
        return PageNeed(self._num_pages(last), max_match, headroom)

    def _place(self, state: RequestState, lease: Lease) -> None:
        self._dequeue(state)
        state.lease = lease
        state.num_known = len(state.tokens)
        state.num_computed = state.num_scheduled = lease.num_valid
        self._changes.admitted.append(state)
        if state.leg is Leg.LAST:
            state.apply(Event.RESERVE)
        else:
            self._run(state)

    def _note_blocked(self, state: RequestState) -> None:
        if self._blocked is None or state.order < self._blocked.order:
            self._blocked = state

    def _make_way(self) -> None:
        """A request that was blocked takes the place of running ones of lesser priority, if their pages can do."""
        blocked = self._blocked
        if blocked is None or blocked.stage not in (Stage.QUEUED, Stage.READY) or self._leaving:
            return
        lesser = [state for state in self._running if state.request.priority > blocked.request.priority]
        num_pages = self._kv.num_available + sum(len(_lease(state).pages) for state in lesser)
        if lesser and (blocked.stage is Stage.READY or num_pages >= self._need(blocked).num_pages):
            self._preempt(self._running[-1])

    def _preempt(self, state: RequestState) -> None:
        """Take the row away. What is computed goes to the cache, so computing again is cheap if pages come back."""
        assert state is self._running[-1], "the victim is the last in order"
        self._running.pop()
        self.num_preempted += 1
        if state.num_announced:
            self._changes.retracted.append(state)
        state.apply(Event.PREEMPT)
        self._forget(state)
        if self._is_in_flight(state):
            self._leaving.append(state)
        else:
            self._requeue(state)

    def _requeue(self, state: RequestState) -> None:
        lease = _lease(state)
        self._kv.publish(lease, state.tokens, state.num_computed)
        self._kv.retire(lease)
        state.apply(Event.REQUEUE)
        state.lease = None
        state.num_computed = state.num_scheduled = state.num_announced = 0
        state.last_step = NOT_LAUNCHED
        insort(self._queue, state, key=_order)

    def _is_in_flight(self, state: RequestState) -> bool:
        """Whether a step that was launched and not committed names the row."""
        return self._committed < state.last_step < self._draft.step_id

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.page_size)


def _lease(state: RequestState) -> Lease:
    assert state.lease is not None, "the stage has pages"
    return state.lease
