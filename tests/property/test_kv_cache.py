"""Pages, tree and leases together: who owns a page is recomputed after each step from what the test itself did."""

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.errors import IllegalEvent
from engine.core.kv_cache import KVCache, PageNeed
from engine.core.lease import Lease, LeaseEvent, LeaseState
from tests.fakes.core import make_request

token_lists = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@dataclass
class Held:
    """A lease, and what the test knows of it."""

    lease: Lease
    salt: bytes
    tokens: list[int]
    num_valid: int
    generations: list[int] = field(default_factory=list)
    gone: bool = False
    """Its owner let go while operations were in flight."""


class CacheMachine(RuleBasedStateMachine):
    @initialize(page_size=st.integers(1, 3), num_pages=st.integers(1, 12))
    def start(self, page_size: int, num_pages: int) -> None:
        self.page_size, self.num_pages = page_size, num_pages
        self.generations = array("Q", bytes(8 * num_pages))
        self.kv = KVCache(page_size, num_pages, "model", self.generations)
        self.held: list[Held] = []
        self.content: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        """What was computed into each page, as salt and prefix, for as long as its generation lasts."""
        self.next_id = 0

    def pick(self, choice: int, *states: LeaseState) -> Held | None:
        held = [one for one in self.held if one.lease.state in states and not one.gone]
        return held[choice % len(held)] if held else None

    def take_fresh(self, pages: list[int], taker: Lease | None = None) -> None:
        """New pages belonged to nobody, and what they held is gone."""
        in_use = {page for one in self.held if one.lease is not taker for page in one.lease.pages}
        assert in_use.isdisjoint(pages) and len(set(pages)) == len(pages)
        for page in pages:
            self.content.pop(page, None)

    def note_generations(self, held: Held) -> None:
        held.generations = [self.generations[page] for page in held.lease.pages]

    # ------------------------------------------------------------ rules

    @rule(
        tokens=token_lists,
        salt=st.sampled_from([b"", b"", b"a"]),
        remote=st.booleans(),
        spare=st.integers(0, 2),
        headroom=st.integers(0, 2),
    )
    def open(self, tokens: list[int], salt: bytes, remote: bool, spare: int, headroom: int) -> None:
        state = LeaseState.RESERVED if remote else LeaseState.PROVEN
        num_pages = -(-len(tokens) // self.page_size) + spare
        need = PageNeed(num_pages, len(tokens) if remote else len(tokens) - 1, headroom, state)
        self.next_id += 1
        request = make_request(self.next_id, tokens, cache_salt=salt)
        before, available = list(self.generations), self.kv.num_available
        opened = self.kv.open(request, request.tokens, need)
        if opened is None:
            assert num_pages + headroom > available
        elif isinstance(opened, Lease):
            assert opened.num_valid == opened.num_shared * self.page_size <= need.max_match
            for index, page in enumerate(opened.pages[: opened.num_shared]):
                assert self.content[page] == (salt, tuple(tokens[: (index + 1) * self.page_size]))
                assert self.generations[page] == before[page], "a shared page got a new owner"
            fresh = opened.pages[opened.num_shared :]
            assert len(opened.pages) == num_pages
            assert all(self.generations[page] == before[page] + 1 for page in fresh)
            self.take_fresh(fresh)
            self.held.append(Held(opened, salt, tokens, opened.num_valid))
            self.note_generations(self.held[-1])
        else:
            assert self.publisher(salt, tokens, opened[1], remote), "waits for nobody"

    def publisher(self, salt: bytes, tokens: list[int], page: bytes, remote: bool) -> bool:
        """Some live lease is going to publish that page after a prefix that it shares with `tokens`."""
        size = self.page_size
        for one in self.held:
            end = (one.num_valid // size + 1) * size
            if one.gone or one.salt != salt or len(one.tokens) < end or one.tokens[:end] != tokens[:end]:
                continue
            if array("i", tokens[end - size : end]).tobytes() == page:
                if remote or one.lease.state is LeaseState.PROVEN:
                    return True
        return False

    @rule(choice=st.integers(0, 100), num_pages=st.integers(1, 3))
    def extend(self, choice: int, num_pages: int) -> None:
        held = self.pick(choice, LeaseState.PROVEN)
        if held is None:
            return
        available = self.kv.num_available
        pages = self.kv.extend(held.lease, num_pages)
        assert (pages is None) == (num_pages > available)
        if pages is not None:
            assert held.lease.pages[-num_pages:] == pages
            self.take_fresh(pages, held.lease)
            held.tokens = held.tokens + [0] * (num_pages * self.page_size)
            self.note_generations(held)

    @rule(choice=st.integers(0, 100), num_tokens=st.integers(1, 6))
    def publish(self, choice: int, num_tokens: int) -> None:
        held = self.pick(choice, LeaseState.PROVEN, LeaseState.RESERVED, LeaseState.FILLING)
        if held is None:
            return
        size, tokens = self.page_size, array("i", held.tokens)
        num_valid = min(held.num_valid + num_tokens, len(held.tokens), len(held.lease.pages) * size)
        for index in range(held.num_valid // size, num_valid // size):
            self.content[held.lease.pages[index]] = (held.salt, tuple(held.tokens[: (index + 1) * size]))
        held.num_valid = num_valid
        self.kv.publish(held.lease, tokens, num_valid)

    @rule(choice=st.integers(0, 100))
    def fill(self, choice: int) -> None:
        held = self.pick(choice, LeaseState.RESERVED, LeaseState.FILLING)
        if held is not None:
            held.lease.fill()

    @precondition(lambda self: any(one.lease.num_ops for one in self.held))
    @rule(choice=st.integers(0, 100))
    def settle(self, choice: int) -> None:
        busy = [one for one in self.held if one.lease.num_ops]
        held = busy[choice % len(busy)]
        ended = self.kv.settle(held.lease)
        assert ended == (held.gone and held.lease.num_ops == 0)
        if ended:
            self.held.remove(held)

    @rule(choice=st.integers(0, 100))
    def prove(self, choice: int) -> None:
        held = self.pick(choice, LeaseState.RESERVED)
        if held is not None:
            held.lease.apply(LeaseEvent.PROVE)

    @rule(choice=st.integers(0, 100), step_in_flight=st.booleans())
    def retire(self, choice: int, step_in_flight: bool) -> None:
        held = self.pick(choice, LeaseState.PROVEN, LeaseState.RESERVED, LeaseState.FILLING)
        if held is None:
            return
        step_in_flight &= held.lease.state is LeaseState.PROVEN
        freed = self.kv.retire(held.lease, step_in_flight=step_in_flight)
        assert freed == (held.lease.num_ops == 0)
        held.gone = not freed
        if freed:
            self.held.remove(held)
        with pytest.raises(IllegalEvent):
            self.kv.retire(held.lease)

    @invariant()
    def owners(self) -> None:
        self.kv.check_integrity()
        for one in self.held:
            assert [self.generations[page] for page in one.lease.pages] == one.generations, "a leased page was reused"
        counts = dict.fromkeys(("leased", "reserved", "filling", "quarantined"), 0)
        names = {LeaseState.PROVEN: "leased"}
        for one in self.held:
            counts[names.get(one.lease.state, str(one.lease.state))] += len(one.lease.private)
        states = self.kv.pages_by_state()
        assert {name: states[name] for name in counts} == counts
        assert sum(states.values()) == self.num_pages

    def teardown(self) -> None:
        for held in list(self.held):
            if not held.gone:
                held.gone = not self.kv.retire(held.lease)
            while held.lease.num_ops:
                self.kv.settle(held.lease)
        self.held.clear()
        self.kv.check_integrity()
        assert self.kv.num_available == self.num_pages


TestKVCache = CacheMachine.TestCase
TestKVCache.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
