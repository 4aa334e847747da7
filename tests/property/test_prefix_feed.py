"""The feed machine against the worker that it follows, over a channel that loses, repeats and reorders everything."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.core.digest import page_keys
from engine.core.messages import KVEvent, PagesCleared, PagesRemoved, PagesStored
from router.prefix_feed import AskReplay, AskSnapshot, PrefixFeed
from router.prefix_index import PrefixIndex

KEPT = 12
"""Batches that the worker can replay."""


class FeedMachine(RuleBasedStateMachine):
    """A worker whose cache changes in batches, a reader, and messages between them that may do anything but lie."""

    @initialize(seed=st.integers(0, 2**32 - 1), replays=st.booleans())
    def start(self, seed: int, replays: bool) -> None:
        self.rng = Random(seed)
        self.replays = replays
        self.index = PrefixIndex()
        self.feed = PrefixFeed(self.index, 10_000, replays=replays)
        self.now, self.incarnation = 0.0, 0
        self.begin()

    def begin(self) -> None:
        """A worker starts."""
        self.incarnation += 1
        self.first = self.incarnation * 1000
        self.held: set[int] = set()
        self.batches: list[list[KVEvent]] = []
        self.history: dict[int, frozenset[int]] = {}
        self.channel: list[tuple[int, list[KVEvent]]] = []
        self.number([PagesCleared()])

    @property
    def last(self) -> int:
        return self.first + len(self.batches) - 1

    def number(self, events: list[KVEvent]) -> None:
        self.batches.append(events)
        self.history[self.last] = frozenset(self.held)
        self.channel.append((self.last, events))

    @rule(clear=st.integers(0, 30))
    def change(self, clear: int) -> None:
        events: list[KVEvent] = []
        if not clear:
            self.held.clear()
            events.append(PagesCleared())
        for _ in range(self.rng.randrange(1, 4)):
            gone = self.rng.sample(sorted(self.held), min(len(self.held), self.rng.randrange(3)))
            fresh = [key for key in self.rng.sample(range(1, 200), self.rng.randrange(4)) if key not in self.held]
            self.held.difference_update(gone)
            self.held.update(fresh)
            events += [PagesRemoved(names(gone)), PagesStored(b"", names(fresh))]
        self.number(events)

    @rule()
    def restart(self) -> None:
        if self.replays:  # a session ends with its worker
            self.begin()

    @rule(how=st.sampled_from(["next", "any", "again", "lose"]))
    def deliver(self, how: str) -> None:
        if not self.channel:
            return
        at = 0 if how in ("next", "lose") or not self.replays else self.rng.randrange(len(self.channel))
        message = self.channel[at] if how == "again" else self.channel.pop(at)
        if how != "lose":
            self.feed.apply(*message)
        self.ask(lossy=True)

    @rule()
    def say_state(self) -> None:
        digest = 0
        for key in self.held:
            digest ^= key
        if self.replays:
            self.feed.met(self.incarnation)
            self.feed.report(digest, self.last, self.now)
        elif not self.channel and self.feed.seq == self.last:
            self.feed.report(digest, None, self.now)
        self.ask(lossy=True)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ask(lossy=True)

    @rule()
    def corrupt(self) -> None:
        """A fault that no batch shows: the next word of the worker must."""
        if self.feed.synced and self.feed.seq == self.last and self.replays:
            self.index.store(self.feed.slot, [777])
            self.say_state()
            assert not self.feed.synced

    def ask(self, lossy: bool) -> None:
        """Do what the machine wants, over the same channel."""
        ask = self.feed.next_ask(self.now)
        if lossy and self.rng.random() < 0.3:
            return
        match ask:
            case AskSnapshot():
                self.channel.append((self.last, [PagesCleared(), PagesStored(b"", names(self.held))]))
            case AskReplay(first):
                assert self.replays
                begin = max(first, self.first, self.last + 1 - KEPT)
                self.channel += [(at, self.batches[at - self.first]) for at in range(begin, self.last + 1)]
                if begin > first and not lossy:
                    self.feed.replayed()

    @invariant()
    def a_synced_view_is_the_workers_at_that_batch(self) -> None:
        if self.feed.synced and self.feed.seq >= self.first:
            known = {key for part in self.index._parts for key in part}
            assert known == self.history[self.feed.seq]
        elif not self.feed.synced:
            assert len(self.index) == 0, "who knows nothing must not say anything"
        self.index.check_integrity()

    def teardown(self) -> None:
        """When nothing is lost any more it converges, in bounded time."""
        if not hasattr(self, "feed"):
            return
        for _ in range(60):
            for message in self.channel:
                self.feed.apply(*message)
            self.channel.clear()
            self.say_state_quietly()
            self.now += 1.0
            self.ask(lossy=False)
        assert self.feed.synced
        # A session's word has no number: a lost batch that left the worker as it was is not noticed, and matters not.
        same = not self.replays and self.history.get(self.feed.seq) == frozenset(self.held)
        assert self.feed.seq == self.last or same
        assert {key for part in self.index._parts for key in part} == self.held

    def say_state_quietly(self) -> None:
        digest = 0
        for key in self.held:
            digest ^= key
        if self.replays:
            self.feed.met(self.incarnation)
        self.feed.report(digest, self.last if self.replays else None, self.now)


def names(keys: "set[int] | list[int]") -> tuple[bytes, ...]:
    digests = tuple(key.to_bytes(8, "little") for key in sorted(keys))
    assert page_keys(digests) == sorted(keys)
    return digests


FeedMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestFeed = FeedMachine.TestCase
