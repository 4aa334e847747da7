"""The engine core under any order of arrivals, aborts, handoffs, deadlines and steps, in pools that are too small.

The fake executor makes every token a hash of all KV before it, read through the page table when the step ends, and
transfers land as late as the test likes. So a page with two owners, or given away too early, shows as a wrong token.
"""

from array import array
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore, FinalPages, Reserved, StepResult
from engine.core.errors import InvalidRequest, Overloaded
from engine.core.radix_tree import Node
from engine.core.types import FinishReason, Request, Sampling
from tests.fakes.executor import FakeExecutor, expected_tokens, kv_of, logprob

SUCCESS = (FinishReason.STOP, FinishReason.LENGTH)
prompts = st.builds(
    lambda shared, own: [1, 2, 3, 4, 5, 6, 7, 8][:shared] + own,
    st.integers(0, 8),
    st.lists(st.integers(1, 2), min_size=1, max_size=6),
)
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(0, 4) | st.integers(8, 30),
    min_tokens=st.integers(0, 3),
    seed=st.integers(0, 1),
    stop_token_ids=st.sampled_from([(), (3,), tuple(range(0, 40, 3))]),
    num_logprobs=st.sampled_from([None, 0]),
    num_prompt_logprobs=st.sampled_from([None, None, None, 0]),
)


@dataclass
class Seen:
    """What the test knows of one request."""

    request: Request
    leg: str
    emitted: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_prompt_logprobs: int = 0
    ends: list[str] = field(default_factory=list)
    final: list[FinalPages] = field(default_factory=list)
    reserved: Reserved | None = None
    num_proven: int = 0


@dataclass
class Transfer:
    """A read in flight: lands in `pages` whenever the test says so."""

    id: int
    pages: list[int]
    slots: list[list[int]]
    end: int


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        page_size=st.integers(1, 4),
        num_pages=st.integers(3, 14),
        max_rows=st.integers(1, 5),
        max_step_tokens=st.integers(1, 12),
        max_in_flight=st.integers(1, 3),
    )
    def start(self, page_size: int, num_pages: int, max_rows: int, max_step_tokens: int, max_in_flight: int) -> None:
        self.config = SchedulerConfig(page_size, num_pages, 30, max_step_tokens, max_rows, max_in_flight, max_queued=6)
        self.executor = FakeExecutor(page_size, num_pages, min(max_rows, max_step_tokens), max_step_tokens)
        self.generations = array("Q", bytes(8 * num_pages))
        self.core = EngineCore(self.config, self.executor, model_hash="m", generations=self.generations)
        self.now = 0.0
        self.seen: dict[int, Seen] = {}
        self.transfers: list[Transfer] = []

    # ------------------------------------------------------------ helpers

    def live(self, *, reserved: bool | None = None) -> list[Seen]:
        return [
            seen
            for seen in self.seen.values()
            if not seen.ends and (reserved is None or (seen.reserved is not None) == reserved)
        ]

    def held(self) -> list[Seen]:
        return [seen for seen in self.seen.values() if seen.ends == ["held"]]

    def expected(self, seen: Seen) -> list[int]:
        request = seen.request
        return expected_tokens(list(request.tokens), request.num_prompt, request.sampling, self.core.max_model_len)

    def take(self, result: StepResult) -> None:
        for row, (id, token) in enumerate(zip(result.ids, result.tokens, strict=True)):
            seen = self.seen[id]
            seen.tokens.append(token)
            assert not seen.ends, "a token after the end"
            if seen.request.sampling.num_logprobs is not None:
                assert result.logprobs is not None
                before = [*seen.request.tokens, *seen.emitted, *seen.tokens[:-1]]
                assert result.logprobs[row] == logprob(kv_of(before), token)
        for id, entries in result.prompt_logprobs:
            seen = self.seen[id]
            prompt = list(seen.request.tokens[: seen.request.num_prompt])
            for entry in entries:
                seen.num_prompt_logprobs += 1
                at = seen.num_prompt_logprobs
                assert entry == logprob(kv_of(prompt[:at]), prompt[at]), "a prompt position twice or out of order"
        for reserved in result.reserved:
            self.seen[reserved.id].reserved = reserved
            self.seen[reserved.id].num_proven = reserved.num_local
        for final in result.final_pages:
            self.check_final(final)
        for started in result.started:
            assert self.seen[started.id].leg != "reserve"
            assert 0 <= started.cached_tokens < len(self.seen[started.id].request.tokens)
        for finished in result.finished:
            self.end(self.seen[finished.id], finished.reason)
        for id in result.retracted:
            self.end(self.seen[id], "retracted")

    def end(self, seen: Seen, reason: str) -> None:
        seen.ends.append(reason)
        assert len(seen.ends) == 1, "ended twice"
        seen.reserved = None
        expected = self.expected(seen)
        got = seen.emitted + seen.tokens
        if reason in SUCCESS:
            assert got == expected
            assert (reason is FinishReason.STOP) == bool(
                got
                and got[-1] in seen.request.sampling.stop_token_ids
                and len(seen.request.tokens) + len(got) > seen.request.num_prompt + seen.request.sampling.min_tokens
            )
            if seen.request.sampling.num_prompt_logprobs is not None and seen.leg != "reserve":
                assert seen.num_prompt_logprobs == seen.request.num_prompt - 1
        elif reason == "held":
            assert got == expected[:1] and len(expected) > 1
        else:
            assert got == expected[: len(got)]

    def check_final(self, final: FinalPages) -> None:
        """What a ticket names is the KV of the prompt, and stays so while the generations do."""
        seen, size = self.seen[final.id], self.config.page_size
        assert seen.leg == "hold" and final.start % size == 0 and (final.last or final.end % size == 0)
        if final.start == 0:
            seen.final.clear()
        assert final.start == (seen.final[-1].end if seen.final else 0) < final.end
        seen.final.append(final)
        assert final.generations == [self.generations[page] for page in final.pages]
        self.check_readable(seen, final)
        if final.last:
            assert final.end == len(seen.request.tokens)
            self.end(seen, "held")

    def check_readable(self, seen: Seen, final: FinalPages) -> None:
        size = self.config.page_size
        slots = kv_of(list(seen.request.tokens))
        for index, page in enumerate(final.pages):
            if self.generations[page] == final.generations[index]:
                begin = final.start + index * size
                valid = slots[begin : min(begin + size, final.end)]
                assert self.executor.memory[page][: len(valid)] == valid, "proven by its generation, yet wrong"

    def check_cache(self) -> None:
        """Every page of the prefix cache holds the KV of the tokens that it is found by."""
        size = self.config.page_size
        stack: list[tuple[Node, list[int]]] = [(root, []) for root in self.core._kv._tree._roots.values()]
        while stack:
            node, before = stack.pop()
            tokens = before + (list(array("i", bytes(node.key))) if node.parent else [])
            slots = kv_of(tokens)[len(before) :]
            for index, page in enumerate(node.pages):
                assert self.executor.memory[page] == slots[index * size : (index + 1) * size], "a wrong page is cached"
            stack += [(child, tokens) for child in node.children.values()]

    # ------------------------------------------------------------ rules

    def accept(
        self,
        prompt: list[int],
        sampling: Sampling,
        priority: int,
        patience: float,
        salt: bytes,
        *,
        resumed: int = 0,
        leg: str = "submit",
    ) -> None:
        id = len(self.seen)
        tokens = list(prompt)
        tokens += expected_tokens(tokens, len(prompt), sampling, 1000)[: min(resumed, sampling.max_tokens)]
        request = Request(id, array("i", tokens), len(prompt), sampling, self.now, self.now + patience, priority, salt)
        seen = Seen(request, leg)
        try:
            if leg == "reserve":
                self.core.reserve(request)
            else:
                self.core.submit(request, hold=leg == "hold")
        except InvalidRequest:
            assert len(tokens) > self.core.max_model_len
        except Overloaded:
            assert self.core.load(self.now).queued_requests >= self.config.max_queued
        else:
            self.seen[id] = seen
            return
        self.seen[id] = seen
        seen.ends.append("refused")

    @rule(
        prompt=prompts,
        sampling=samplings,
        priority=st.integers(0, 2),
        patience=st.sampled_from([5.0, 20.0, 1e6]),
        salt=st.sampled_from([b"", b"", b"s"]),
        resumed=st.sampled_from([0, 0, 1, 3]),
        leg=st.sampled_from(["submit", "submit", "hold", "reserve"]),
    )
    def arrive(
        self, prompt: list[int], sampling: Sampling, priority: int, patience: float, salt: bytes, resumed: int, leg: str
    ) -> None:
        self.accept(prompt, sampling, priority, patience, salt, resumed=resumed, leg=leg)

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]), count=st.integers(1, 6))
    def step(self, seconds: float, count: int) -> None:
        for _ in range(count):
            self.now += seconds
            self.take(self.core.step(self.now))
            self.core.check_integrity()
            for seen in self.held():
                if seen.request.deadline_s > self.now:
                    for final in seen.final:
                        assert final.generations == [self.generations[page] for page in final.pages], "lease broken"

    @precondition(lambda self: self.live())
    @rule(choice=st.integers(0, 100))
    def abort(self, choice: int) -> None:
        live = self.live()
        assert self.core.abort(live[choice % len(live)].request.id) in (True, False)

    @precondition(lambda self: self.held())
    @rule(choice=st.integers(0, 100))
    def release(self, choice: int) -> None:
        held = self.held()
        seen = held[choice % len(held)]
        released = self.core.release(seen.request.id)
        assert released or seen.request.deadline_s <= self.now
        assert not self.core.release(seen.request.id)
        seen.ends = ["released"]

    @precondition(lambda self: self.live(reserved=True))
    @rule(choice=st.integers(0, 100), share=st.integers(1, 4))
    def transfer(self, choice: int, share: int) -> None:
        """Post a read of some of the pages that are not proven yet."""
        live = self.live(reserved=True)
        seen = live[choice % len(live)]
        posted = max(
            [seen.num_proven] + [transfer.end for transfer in self.transfers if transfer.id == seen.request.id]
        )
        size, reserved = self.config.page_size, seen.reserved
        if posted == reserved.num_tokens or not self.core.fill(seen.request.id):
            return
        begin, end = posted // size, min(posted // size + share, len(reserved.pages))
        slots = kv_of(list(seen.request.tokens))
        pages = reserved.pages[begin:end]
        data = [slots[index * size : (index + 1) * size] for index in range(begin, end)]
        self.transfers.append(Transfer(seen.request.id, pages, data, min(end * size, reserved.num_tokens)))

    @precondition(lambda self: self.transfers)
    @rule(choice=st.integers(0, 100), ok=st.booleans())
    def land(self, choice: int, ok: bool) -> None:
        """Bytes of a read arrive, in any order, perhaps long after the request is over."""
        index = choice % len(self.transfers)
        transfer = self.transfers[index]
        earlier = [other for other in self.transfers[:index] if other.id == transfer.id]
        if earlier:
            transfer = earlier[0]
        self.transfers.remove(transfer)
        for page, slots in zip(transfer.pages, transfer.slots, strict=True):
            self.executor.memory[page][: len(slots)] = slots if ok else [-1] * len(slots)
        self.core.settle(transfer.id)
        seen = self.seen[transfer.id]
        gap = any(other.end < transfer.end for other in self.transfers if other.id == transfer.id)
        if ok and not gap and seen.reserved is not None and not seen.ends:
            begin = transfer.end - sum(len(slots) for slots in transfer.slots)
            if begin == seen.num_proven and self.core.prove(transfer.id, transfer.end):
                seen.num_proven = transfer.end

    @precondition(lambda self: self.live(reserved=True))
    @rule(choice=st.integers(0, 100), first=st.booleans())
    def adopt(self, choice: int, first: bool) -> None:
        """The handoff ends, complete or not, perhaps with reads in flight."""
        live = self.live(reserved=True)
        self.settle_handoff(live[choice % len(live)], first)

    def settle_handoff(self, seen: Seen, first: bool) -> None:
        expected = self.expected(seen)
        emitted = expected[:1] if first and len(expected) > 1 else []
        if self.core.adopt(seen.request.id, emitted):
            seen.reserved = None
            seen.emitted = emitted
        else:
            assert seen.request.deadline_s <= self.now or not seen.ends

    @rule()
    def attend(self) -> None:
        """Between launches."""
        self.core.attend(self.now)
        self.take(self.core.take_result())

    @rule()
    def read_events(self) -> None:
        self.core.drain_events()

    @invariant()
    def sound(self) -> None:
        self.core.check_integrity()
        self.check_cache()
        for seen in self.seen.values():
            for final in seen.final:  # for ever: a peer may read late
                self.check_readable(seen, final)
        load = self.core.load(self.now)
        assert 0 <= load.free_pages <= load.num_pages and load.queued_tokens >= 0

    def teardown(self) -> None:
        for _ in range(2000):
            while self.transfers:
                self.land(0, True)
            for seen in self.live(reserved=True):
                self.settle_handoff(seen, first=True)
            while self.held():
                self.release(0)
            if not self.core.has_work:
                break
            self.take(self.core.step(self.now))
            self.core.check_integrity()
        assert not self.live(), "a request never ended"
        states = self.core.pages_by_state()
        assert states["free"] + states["cached"] == self.config.num_pages, states
        assert self.core.next_deadline_s() is None
        self.executor.close()


TestEngineCore = EngineMachine.TestCase
TestEngineCore.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
