"""From the workers' prefix events to the index: order, gaps, and asking again."""

from engine.core.messages import KVEvent, PagesCleared, PagesRemoved, PagesStored
from router.prefix_index import PrefixIndex

_ASK_AGAIN_S = 1.0
_MAX_ASK_AGAIN_S = 4.0


class PrefixFeed:
    """One worker's stream of prefix events. After a gap the worker counts as holding only what it says from then on,
    until it has said everything again: the index may know too little, never too much.
    """

    __slots__ = ("_ask_again_s", "_ask_s", "_index", "_seq", "_slot", "synced")

    def __init__(self, index: PrefixIndex, slot: int) -> None:
        self._index = index
        self._slot = slot
        self._seq = 0
        self.synced = False
        """True while the index says of this worker exactly what the worker's cache held at its last event."""
        self._ask_again_s = _ASK_AGAIN_S
        self._ask_s = float("-inf")

    def apply(self, seq: int, events: list[KVEvent]) -> None:
        """One batch, in the order of arrival."""
        if seq != self._seq + 1:
            self._lost()
        self._seq = seq
        for event in events:
            match event:
                case PagesStored(_, digests):
                    if not self._index.store(self._slot, digests):
                        self._lost()
                case PagesRemoved(digests):
                    self._index.remove(self._slot, digests)
                case PagesCleared():
                    self._index.clear(self._slot)
                    self.synced = True
                    self._ask_again_s = _ASK_AGAIN_S

    def should_ask(self, now: float) -> bool:
        """True when the worker should be sent SendPrefixes now; not again for a while, longer each time."""
        if self.synced or now < self._ask_s:
            return False
        self._ask_s = now + self._ask_again_s
        self._ask_again_s = min(2 * self._ask_again_s, _MAX_ASK_AGAIN_S)
        return True

    def _lost(self) -> None:
        self._index.clear(self._slot)
        self.synced = False
