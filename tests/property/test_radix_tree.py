"""The radix tree against a dictionary of prefixes that is obviously right and slow."""

from array import array
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.digest import page_digests, root_digest
from engine.core.messages import PagesCleared, PagesRemoved, PagesStored
from engine.core.radix_tree import Node, RadixTree

Prefix = tuple[bytes, tuple[int, ...]]
"""Salt and the tokens up to the end of one page."""


@dataclass
class Stored:
    page: int
    used: int


@dataclass
class Locked:
    node: Node
    prefix: Prefix


class TreeMachine(RuleBasedStateMachine):
    """Every stored page is an entry under its whole prefix; an entry with a longer one in the model is no leaf."""

    @initialize(page_size=st.integers(1, 3))
    def start(self, page_size: int) -> None:
        self.page_size = page_size
        self.tree = RadixTree(page_size, "model")
        self.model: dict[Prefix, Stored] = {}
        self.locks: list[Locked] = []
        self.next_page = 0
        self.clock = 0
        self.known: set[bytes] = set()

    def prefixes(self, salt: bytes, tokens: list[int]) -> list[Prefix]:
        size = self.page_size
        return [(salt, tuple(tokens[: end * size])) for end in range(1, len(tokens) // size + 1)]

    def is_locked(self, prefix: Prefix) -> bool:
        return any(lock.prefix[0] == prefix[0] and lock.prefix[1][: len(prefix[1])] == prefix[1] for lock in self.locks)

    def is_leaf(self, prefix: Prefix) -> bool:
        longer = len(prefix[1]) + self.page_size
        return not any(
            other[0] == prefix[0] and len(other[1]) == longer and other[1][: -self.page_size] == prefix[1]
            for other in self.model
        )

    def longest(self, salt: bytes, tokens: list[int], max_pages: int) -> list[Prefix]:
        matched = []
        for prefix in self.prefixes(salt, tokens)[:max_pages]:
            if prefix not in self.model:
                break
            matched.append(prefix)
        return matched

    def touch(self, prefixes: list[Prefix]) -> None:
        self.clock += 1
        for prefix in prefixes:
            self.model[prefix].used = self.clock

    @rule(
        salt=st.sampled_from([b"", b"a"]),
        tokens=st.lists(st.integers(0, 1), max_size=12),
        max_pages=st.integers(0, 12),
        lock=st.booleans(),
    )
    def match(self, salt: bytes, tokens: list[int], max_pages: int, lock: bool) -> None:
        node, pages = self.tree.match(salt, array("i", tokens).tobytes(), max_pages)
        expected = self.longest(salt, tokens, max_pages)
        self.touch(expected)
        assert pages == [self.model[prefix].page for prefix in expected]
        self.tree.lock(node)
        self.locks.append(Locked(node, expected[-1] if expected else (salt, ())))
        if not lock:
            self.unlock(len(self.locks) - 1)

    @precondition(lambda self: self.locks)
    @rule(choice=st.integers(0, 100), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def insert(self, choice: int, tokens: list[int]) -> None:
        """Go on below a locked prefix, as a lease does when its pages become final."""
        lock = self.locks[choice % len(self.locks)]
        num_pages = len(tokens) // self.page_size
        tokens = tokens[: num_pages * self.page_size]
        pages = list(range(self.next_page, self.next_page + num_pages))
        self.next_page += num_pages
        salt, before = lock.prefix
        prefixes = self.prefixes(salt, [*before, *tokens])[len(before) // self.page_size :]
        node, duplicates = self.tree.insert(lock.node, array("i", tokens).tobytes(), pages)
        assert duplicates == [page for page, prefix in zip(pages, prefixes, strict=True) if prefix in self.model]
        for page, prefix in zip(pages, prefixes, strict=True):
            self.model.setdefault(prefix, Stored(page, 0))
        self.touch(prefixes)
        self.tree.lock(node, locked=lock.node)
        lock.node, lock.prefix = node, prefixes[-1] if prefixes else lock.prefix

    @precondition(lambda self: self.locks)
    @rule(choice=st.integers(0, 100))
    def unlock(self, choice: int) -> None:
        self.tree.unlock(self.locks.pop(choice % len(self.locks)).node)

    @rule(num_pages=st.integers(0, 8))
    def evict(self, num_pages: int) -> None:
        expected = []
        while len(expected) < num_pages:
            leaves = [prefix for prefix in self.model if self.is_leaf(prefix) and not self.is_locked(prefix)]
            if not leaves:
                break
            oldest = min(leaves, key=lambda prefix: self.model[prefix].used)
            expected.append(self.model.pop(oldest).page)
        assert sorted(self.tree.evict(num_pages)) == sorted(expected)

    @rule()
    def follow_events(self) -> None:
        """A reader of the events knows the names of exactly the stored prefixes."""
        for event in self.tree.drain_events():
            match event:
                case PagesStored(parent, digests):
                    assert parent == b"" or parent in self.known
                    assert self.known.isdisjoint(digests)
                    self.known.update(digests)
                case PagesRemoved(digests):
                    assert self.known.issuperset(digests)
                    self.known.difference_update(digests)
                case PagesCleared():
                    raise AssertionError("never cleared")
        assert self.known == self.names()
        snapshot = self.tree.stored_pages()
        seen = {b""}
        for event in snapshot:
            assert event.parent in seen, "a child before its parent"
            seen.update(event.digests)
        assert seen - {b""} == self.names()

    def names(self) -> set[bytes]:
        return {
            page_digests(root_digest(salt, "model"), array("i", tokens), self.page_size)[-1]
            for salt, tokens in self.model
        }

    @invariant()
    def counts(self) -> None:
        locks: dict[Node, int] = {}
        for lock in self.locks:
            locks[lock.node] = locks.get(lock.node, 0) + 1
        assert sorted(self.tree.check_integrity(locks)) == sorted(stored.page for stored in self.model.values())
        assert self.tree.num_pages == len(self.model)
        assert self.tree.num_evictable == sum(not self.is_locked(prefix) for prefix in self.model)

    def teardown(self) -> None:
        while self.locks:
            self.unlock(0)
        self.evict(len(self.model))
        self.follow_events()
        assert not self.model and self.tree.num_pages == 0
        assert list(self.tree._nodes()) == [], "an empty tree keeps nothing"


TestRadixTree = TreeMachine.TestCase
TestRadixTree.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
