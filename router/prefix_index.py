"""Which worker holds which prefix, exactly: page digest -> bit mask of workers, kept by the workers' own events.

A worker's cache is a tree, so a worker that holds page i of a chain holds every page before it. Along the digests of
a prompt the set of holders can only shrink, and the lengths of all workers' runs are found by bisection: a prompt of
512 pages takes about ten look-ups, not 512.
"""

from collections.abc import Iterable, Iterator, Sequence


def _bits(mask: int) -> Iterator[int]:
    """Positions of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class PrefixIndex:
    """Owns the masks and, for each worker, the set of digests that it holds (so a lost worker leaves at once).

    Besides what workers reported (`stored`) it knows what they are about to compute (`predict`): prompts that were
    sent to a worker count as cached there, so that calls with the same prompt meet on one worker.
    """

    def __init__(self) -> None:
        self._masks: dict[bytes, int] = {}
        self._predicted: dict[bytes, int] = {}
        self._held: dict[int, set[bytes]] = {}
        self._limits: dict[int, int] = {}

    def __len__(self) -> int:
        """Distinct pages that some worker holds."""
        return len(self._masks)

    def add_worker(self, max_pages: int) -> int:
        """A slot for a worker that can hold `max_pages`: the bit that stands for it in every mask."""
        slot = next(slot for slot in range(len(self._held) + 1) if slot not in self._held)
        self._held[slot] = set()
        self._limits[slot] = max_pages
        return slot

    def remove_worker(self, slot: int) -> None:
        """Forget the worker and all that it holds, in time proportional to that."""
        self.clear(slot)
        self._drop(self._predicted, slot, list(self._predicted))
        del self._held[slot], self._limits[slot]

    def num_pages(self, slot: int) -> int:
        """Pages that the worker of `slot` reported as held."""
        return len(self._held[slot])

    def store(self, slot: int, digests: Iterable[bytes]) -> bool:
        """The worker holds these pages. False when that is more than it can hold: its events cannot be right."""
        bit, masks, held = 1 << slot, self._masks, self._held[slot]
        for digest in digests:
            masks[digest] = masks.get(digest, 0) | bit
            held.add(digest)
        return len(held) <= self._limits[slot]

    def remove(self, slot: int, digests: Iterable[bytes]) -> None:
        """The worker holds these pages no more; ones that it was not known to hold are fine."""
        gone = self._held[slot].intersection(digests)
        self._held[slot] -= gone
        self._drop(self._masks, slot, gone)

    def clear(self, slot: int) -> None:
        """The worker holds nothing."""
        self._drop(self._masks, slot, self._held[slot])
        self._held[slot] = set()

    def predict(self, slot: int, digests: Sequence[bytes], held: int) -> tuple[bytes, ...]:
        """The worker will soon hold `digests`, of which it holds the first `held`. Returns what to `unpredict`."""
        bit, predicted = 1 << slot, self._predicted
        new = tuple(digest for digest in digests[held:] if not predicted.get(digest, 0) & bit)
        for digest in new:
            predicted[digest] = predicted.get(digest, 0) | bit
        return new

    def unpredict(self, slot: int, digests: Iterable[bytes]) -> None:
        """What `predict` returned has been reported by now, or will never be."""
        self._drop(self._predicted, slot, digests)

    def match(self, digests: Sequence[bytes]) -> dict[int, int]:
        """Slot -> number of leading pages of the chain `digests` that its worker holds, for those that hold any."""
        if not digests:
            return {}
        get, soon = self._masks.get, self._predicted.get
        runs: dict[int, int] = {}
        first = get(digests[0], 0) | soon(digests[0], 0)
        # Each entry: `at_low` holds page low, `at_high` holds page high; whoever is missing above drops out between.
        pending = [(0, first, len(digests), 0)] if first else []
        while pending:
            low, at_low, high, at_high = pending.pop()
            if high - low == 1:
                for slot in _bits(at_low & ~at_high):
                    runs[slot] = high
                continue
            middle = (low + high) // 2
            digest = digests[middle]
            # Whoever holds a later page holds this one, and nobody joins on the way: true of the workers even
            # where this index has missed an event.
            at_middle = ((get(digest, 0) | soon(digest, 0)) & at_low) | at_high
            if at_middle != at_low:
                pending.append((low, at_low, middle, at_middle))
            if at_middle != at_high:
                pending.append((middle, at_middle, high, at_high))
        return runs

    def check_integrity(self) -> None:
        """Raise AssertionError unless masks and the workers' sets say the same."""
        truth: dict[bytes, int] = {}
        for slot, held in self._held.items():
            for digest in held:
                truth[digest] = truth.get(digest, 0) | 1 << slot
        assert truth == self._masks, "masks differ from what the workers hold"
        assert all(self._predicted.values()), "an empty prediction was kept"

    @staticmethod
    def _drop(masks: dict[bytes, int], slot: int, digests: Iterable[bytes]) -> None:
        bit = 1 << slot
        for digest in digests:
            rest = masks.get(digest, 0) & ~bit
            if rest:
                masks[digest] = rest
            else:
                masks.pop(digest, None)
