"""One worker's prefix events into the index: order, gaps, replay, starting again, and views that are not the worker's.

The events come as numbered batches, over the worker's session or over its public feed (engine/server/kv_events); this
machine is the same for both.

    following   each batch has the next number                    the index is the worker's cache as of that batch
    gap         a number is missing: what follows waits           ask for a replay; too late or impossible: lost
    lost        the index knows nothing of the worker             ask for all of it; what follows waits for that

The index may know too little, never more than the worker held a moment ago. What nothing in the batches can show (a
batch that was lost at the end, a page that was dropped by a fault) shows in the worker's own word of its view: the
number of its last batch and the digest of all its pages.
"""

from dataclasses import dataclass

from engine.core.digest import page_key, page_keys
from engine.core.messages import DEVICE, KVEvent, PagesCleared, PagesRemoved, PagesStored
from router.prefix_index import PrefixIndex

_ASK_AGAIN_S = 1.0
_MAX_ASK_AGAIN_S = 4.0
REPLAY_S = 1.0
"""A gap that has not got smaller for this long is a loss."""
BEHIND_S = 0.5
"""So long batches that the worker has sent may be on their way."""
MAX_WAITING = 1024
"""Batches that wait behind a gap or for a snapshot."""


@dataclass(frozen=True, slots=True)
class AskReplay:
    """The worker should say its batches again, from number `first` on."""

    first: int


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    """The worker should say all that it holds: a batch that begins with PagesCleared."""


Ask = AskReplay | AskSnapshot


@dataclass(slots=True)
class FeedCounts:
    """What went wrong, since the start. Mutable."""

    gaps: int = 0
    stale: int = 0
    """Views whose digest was not the worker's."""
    losses: int = 0
    """Times that all of a worker had to be said again."""


@dataclass(slots=True)
class _Gap:
    """A replay under way. Mutable."""

    first: int
    """The batch that was asked for."""
    missing: int
    """The next one that is missing, when it was last looked at."""
    since_s: float


class PrefixFeed:
    """Batches in, the worker's part of the index kept. Owns its slots in the index."""

    def __init__(
        self, index: PrefixIndex, max_pages: int, *, replays: bool = False, counts: FeedCounts | None = None
    ) -> None:
        """`max_pages`: the worker can hold so many in each tier. `replays`: the source can say batches again."""
        self._index = index
        self._max_pages = max_pages
        self._slots = {DEVICE: index.add_worker(max_pages)}
        self._replays = replays
        self._counts = counts if counts is not None else FeedCounts()
        self._seq = 0
        self._synced = False
        self._incarnation: int | None = None
        self._waiting: dict[int, list[KVEvent]] = {}
        self._behind: tuple[int, float] | None = None
        """(number that the worker was at, since when this is behind it)."""
        self._gap: _Gap | None = None
        self._ask_s = float("-inf")
        self._ask_again_s = _ASK_AGAIN_S
        self._lost_s: float | None = None
        """Since when it has not been synced, as far as anybody asked."""

    @property
    def is_public(self) -> bool:
        """Whether the events come from the worker's public feed."""
        return self._replays

    @property
    def slot(self) -> int:
        """The worker's slot in the index: what its device holds."""
        return self._slots[DEVICE]

    @property
    def tiers(self) -> dict[str, int]:
        """Pages known of each tier that the worker has spoken of."""
        return {tier: self._index.num_pages(slot) for tier, slot in self._slots.items()}

    @property
    def seq(self) -> int:
        """The number of the last batch that the index has, or had."""
        return self._seq

    @property
    def synced(self) -> bool:
        """True while the index says of this worker exactly what the worker's cache held at batch `seq`."""
        return self._synced

    def use_session(self) -> None:
        """Give the public feed up: what comes from now on is the session's, numbered otherwise."""
        self._lost()
        self._replays, self._seq, self._ask_s = False, 0, float("-inf")

    def close(self) -> None:
        """The worker is gone."""
        for slot in self._slots.values():
            self._index.remove_worker(slot)
        self._slots.clear()

    # ------------------------------------------------------------------------------------------------- what comes

    def met(self, incarnation: int) -> None:
        """Who publishes. Another one than before has nothing to do with what was known."""
        if self._incarnation not in (None, incarnation):
            self._lost()
            self._seq = 0
        self._incarnation = incarnation

    def apply(self, seq: int, events: list[KVEvent]) -> None:
        """Batch `seq`; one that holds PagesCleared is true whatever came before it. Late and repeated ones are fine."""
        if not self._take(seq, events):
            self._wait(seq, events)
        while self._synced and self._waiting:
            waited = self._waiting.pop(self._seq + 1, None)
            if waited is None:
                break
            self._take(self._seq + 1, waited)
        if self._synced and self._waiting:
            self._waiting = {number: batch for number, batch in self._waiting.items() if number > self._seq}
        if not self._waiting and self._behind is None:
            self._gap = None

    def report(self, digest: int, seq: int | None, now: float) -> None:
        """The worker says that all its pages had that digest after batch `seq` (None: the last that came)."""
        if not self._synced or self._waiting:
            return
        if seq is None or seq == self._seq:
            self._behind = None
            mine = self._index.view_digest(self.slot)
            if mine is not None and mine != digest:
                self._counts.stale += 1
                self._lost()
        elif seq > self._seq and (self._behind is None or self._seq >= self._behind[0]):
            self._behind = (seq, now)

    def replayed(self) -> None:
        """A replay is over. If it has not even begun to close the gap, the batches are not to be had any more."""
        if self._gap is not None and self._gap.first == self._seq + 1:
            self._lost()
        self._gap = None

    # ------------------------------------------------------------------------------------------------- what to ask

    def unsynced_s(self, now: float) -> float:
        """For how long it has known nothing, as far as anybody asked."""
        if self._synced:
            self._lost_s = None
        elif self._lost_s is None:
            self._lost_s = now
        return 0.0 if self._lost_s is None else now - self._lost_s

    def next_ask(self, now: float) -> Ask | None:
        """What to ask the worker for now, if anything; a snapshot less and less often."""
        if self._synced and not self._is_missing_batches(now):
            self._gap = None
            return None
        if self._synced and self._replays:
            first = self._seq + 1
            if self._gap is None:
                self._gap = _Gap(first, first, now)
                self._counts.gaps += 1
                return AskReplay(first)
            if self._gap.missing != first:
                self._gap.missing, self._gap.since_s = first, now
            if now - self._gap.since_s < REPLAY_S:
                return None
        if self._synced:
            self._lost()
        if now < self._ask_s:
            return None
        self._ask_s = now + self._ask_again_s
        self._ask_again_s = min(2 * self._ask_again_s, _MAX_ASK_AGAIN_S)
        return AskSnapshot()

    def _is_missing_batches(self, now: float) -> bool:
        if self._behind is not None and self._seq >= self._behind[0]:
            self._behind = None
        return bool(self._waiting) or (self._behind is not None and now - self._behind[1] >= BEHIND_S)

    # ------------------------------------------------------------------------------------------------- private

    def _take(self, seq: int, events: list[KVEvent]) -> bool:
        """Apply a batch if its time has come, or was. False: it must wait."""
        cleared = _last_cleared(events)
        if cleared is not None and (not self._synced or seq > self._seq):
            self._clear()
            self._synced, self._gap, self._ask_again_s = True, None, _ASK_AGAIN_S
            events = events[cleared + 1 :]
        elif not self._synced or seq > self._seq + 1:
            return False
        elif seq <= self._seq:
            return True
        self._seq = seq
        if not all(map(self._store_or_remove, events)):
            self._lost()
        return True

    def _store_or_remove(self, event: KVEvent) -> bool:
        """False for what cannot be right."""
        match event:
            case PagesStored(parent, digests, tier):
                head = page_key(digests[0]) if digests and not parent else None
                return self._index.store(self._slot_of(tier), page_keys(digests), head)
            case PagesRemoved(digests, tier):
                self._index.remove(self._slot_of(tier), page_keys(digests))
                return True
            case PagesCleared():
                raise AssertionError("what comes before it was cut off")

    def _wait(self, seq: int, events: list[KVEvent]) -> None:
        if self._synced and not self._replays:
            self._counts.gaps += 1
            self._lost()
        self._waiting[seq] = events
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[min(self._waiting)]

    def _slot_of(self, tier: str) -> int:
        slot = self._slots.get(tier)
        if slot is None:
            slot = self._slots[tier] = self._index.add_worker(self._max_pages)
        return slot

    def _clear(self) -> None:
        for slot in self._slots.values():
            self._index.clear(slot)

    def _lost(self) -> None:
        self._clear()
        self._counts.losses += 1
        self._synced, self._behind, self._gap = False, None, None
        self._waiting.clear()


def _last_cleared(events: list[KVEvent]) -> int | None:
    for at in range(len(events) - 1, -1, -1):
        if isinstance(events[at], PagesCleared):
            return at
    return None
