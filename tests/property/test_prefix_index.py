"""The prefix index against a slow oracle: what each worker's own tree says."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.digest import page_keys
from router.prefix_index import PrefixIndex

# A small forest of prefixes: page i of chain c is named by c and i; chains share their first pages in groups of three.
CHAINS = [[b"%d/%d" % (chain // 3 if i < 4 else chain, i) for i in range(10)] for chain in range(9)]


class IndexMachine(RuleBasedStateMachine):
    """Workers come and go, and store and evict along chains as a radix tree does: leaves last in, first out."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def start(self, seed: int) -> None:
        self.rng = Random(seed)
        self.index = PrefixIndex()
        self.held: dict[int, dict[int, int]] = {}
        """Slot -> chain -> pages of it."""
        self.expected: list[tuple[int, tuple[bytes, ...]]] = []

    def pages(self, slot: int) -> set[bytes]:
        return {digest for chain, length in self.held[slot].items() for digest in CHAINS[chain][:length]}

    @precondition(lambda self: len(self.held) < 6)
    @rule()
    def join(self) -> None:
        slot = self.index.add_worker(1000)
        assert slot not in self.held
        self.held[slot] = {}

    @precondition(lambda self: self.held)
    @rule(chain=st.integers(0, 8), length=st.integers(1, 10))
    def store(self, chain: int, length: int) -> None:
        slot = self.rng.choice(sorted(self.held))
        self.held[slot][chain] = max(length, self.held[slot].get(chain, 0))
        assert self.index.store(slot, page_keys(CHAINS[chain][:length]), page_keys(CHAINS[chain][:1])[0])

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from([slot for slot, chains in sorted(self.held.items()) if chains]))
        before = self.pages(slot)
        chain = data.draw(st.sampled_from(sorted(self.held[slot])))
        self.held[slot][chain] -= 1
        if not self.held[slot][chain]:
            del self.held[slot][chain]
        self.index.remove(slot, page_keys(before - self.pages(slot)))

    @precondition(lambda self: self.held)
    @rule(leave=st.booleans())
    def clear(self, leave: bool) -> None:
        slot = self.rng.choice(sorted(self.held))
        self.held[slot] = {}
        if leave:
            self.expected = [entry for entry in self.expected if entry[0] != slot]
            self.index.remove_worker(slot)
            del self.held[slot]
        else:
            self.index.clear(slot)

    @precondition(lambda self: self.held)
    @rule(chain=st.integers(0, 8))
    def expect(self, chain: int) -> None:
        slot = self.rng.choice(sorted(self.held))
        held = self.index.match(CHAINS[chain]).get(slot, 0)
        self.expected.append((slot, self.index.predict(slot, CHAINS[chain], held)))

    @precondition(lambda self: self.expected)
    @rule()
    def settle(self) -> None:
        slot, digests = self.expected.pop(self.rng.randrange(len(self.expected)))
        self.index.unpredict(slot, digests)

    @invariant()
    def runs_are_those_of_the_workers(self) -> None:
        for chain in CHAINS:
            runs = self.index.match(chain)
            for slot in self.held:
                known = self.pages(slot).union(*(digests for at, digests in self.expected if at == slot))
                length = next((i for i, digest in enumerate(chain) if digest not in known), len(chain))
                assert runs.get(slot, 0) >= length, "the index forgot a page"
                # A prediction of the middle of a chain may outlive what it hung on; never the other way round.
                reported = [i for i, digest in enumerate(chain) if digest in known]
                assert runs.get(slot, 0) <= max(reported, default=-1) + 1, "the index made a page up"
        self.index.check_integrity()


IndexMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestIndex = IndexMachine.TestCase


@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=8), asked=st.integers(0, 70))
def test_match_finds_each_workers_run(lengths: list[int], asked: int) -> None:
    chain = [i.to_bytes(2, "little") for i in range(70)]
    index = PrefixIndex()
    slots = [index.add_worker(100) for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        index.store(slot, page_keys(chain[:length]))
    expected = {slot: min(length, asked) for slot, length in zip(slots, lengths, strict=True) if min(length, asked)}
    assert index.match(chain[:asked]) == expected


@given(
    max_pages=st.integers(1, 40),
    runs=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 12), st.booleans()), max_size=60),
)
def test_a_bounded_worker_is_known_too_little_never_too_much(max_pages: int, runs: list[tuple[int, int, bool]]) -> None:
    """Runs of pages of 16 chains come and go; whatever was left out, the rest is held and heads stay longest."""
    index = PrefixIndex(max_pages)
    slot, other = index.add_worker(10_000), index.add_worker(10_000)
    held: set[int] = set()
    kept_by_other = list(range(0, 1600, 100))
    index.store(other, kept_by_other[:max_pages])
    for chain, length, comes in runs:
        keys = [100 * chain + i for i in range(length)]
        if comes:
            assert index.store(slot, keys, keys[0])
            held.update(keys)
        else:
            index.remove(slot, keys)
            held.difference_update(keys)
        index.check_integrity()
        known = {key for part in index._parts for key, mask in part.items() if mask & 1 << slot}
        assert known <= held and len(known) == index.num_pages(slot) <= max_pages
        if index.view_digest(slot) is not None:
            assert known == held
        else:
            assert index.num_left_out
    assert index.num_pages(other) == min(len(kept_by_other), max_pages), "one worker's bound is not another's"
