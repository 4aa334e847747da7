"""Which worker holds which prefix, exactly: page -> bit mask of workers, kept by the workers' own events.

A worker's cache is a tree, so a worker that holds page i of a chain holds every page before it. Along the digests of
a prompt the set of holders can only shrink, and the lengths of all workers' runs are found by bisection: a prompt of
512 pages takes about ten look-ups, not 512.

Pages go by their keys (engine/core/digest.py), and what one entry costs is kept small, since a large service has a
hundred million of them: a key is one small integer, most masks are the one object of the worker's bit, masks of
several workers are shared by all pages that have them, and each worker's pages are remembered in an array. The table
comes in parts, so that none of them takes long to grow.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice, repeat
from operator import xor

from engine.core.digest import KEY_MASK

_NUM_PARTS = 256
_MAX_SHARED_MASKS = 65_536
_SLACK = 1024
"""Entries that a worker's log may have beyond twice its pages before it is written anew."""
DEFAULT_MAX_PAGES = 1_000_000


def _bits(mask: int) -> Iterator[int]:
    """Positions of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Holder:
    """One worker. `log` names every page that it holds, in the order of storing, and some that it held once."""

    __slots__ = ("bit", "complete", "digest", "heads", "limit", "log", "num_pages")

    def __init__(self, slot: int, limit: int) -> None:
        self.bit = 1 << slot
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        self.log: array[int] = array("q")
        self.heads: set[int] = set()
        """Pages that begin a chain."""
        self.num_pages = 0
        self.digest = 0
        """The keys of all its pages, XORed."""
        self.complete = True
        """False once pages were left out because there are too many."""


class PrefixIndex:
    """Owns the masks and, for each worker, the list of pages that it holds (so a lost worker leaves at once).

    Besides what workers reported (`store`) it knows what they are about to compute (`predict`): prompts that were
    sent to a worker count as cached there, so that calls with the same prompt meet on one worker.

    Of one worker it remembers at most `max_pages`. Beyond that the pages that were stored longest ago go, an eighth at
    a time, but not the first ones of chains: without those a look-up finds nothing. It then knows too little of
    that worker, never too much.
    """

    def __init__(self, max_pages: int = DEFAULT_MAX_PAGES) -> None:
        self._max_pages = max_pages
        self._parts: list[dict[int, int]] = [{} for _ in range(_NUM_PARTS)]
        self._predicted: dict[bytes, int] = {}
        self._holders: dict[int, _Holder] = {}
        self._shared: dict[int, int] = {}
        """Masks of several workers, by themselves: pages that have the same one have the same object."""
        self.num_left_out = 0
        """Pages that were forgotten because a worker has more than `max_pages`, since the start."""

    def __len__(self) -> int:
        """Distinct pages that some worker holds."""
        return sum(map(len, self._parts))

    def add_worker(self, max_pages: int) -> int:
        """A slot for a worker that can hold `max_pages`: the bit that stands for it in every mask."""
        slot = next(slot for slot in range(len(self._holders) + 1) if slot not in self._holders)
        self._holders[slot] = _Holder(slot, max_pages)
        return slot

    def remove_worker(self, slot: int) -> None:
        """Forget the worker and all that it holds, in time proportional to that."""
        self.clear(slot)
        self.unpredict(slot, list(self._predicted))
        del self._holders[slot]

    def num_pages(self, slot: int) -> int:
        """Pages that the worker of `slot` reported as held, without those that were left out."""
        return self._holders[slot].num_pages

    def pages(self, slot: int) -> set[int]:
        """The keys of those pages; takes as long as the whole index is large."""
        bit = self._holders[slot].bit
        return {key for part in self._parts for key, mask in part.items() if mask & bit}

    def view_digest(self, slot: int) -> int | None:
        """The keys of all pages of the worker of `slot`, XORed; None when some were left out."""
        holder = self._holders[slot]
        return holder.digest if holder.complete else None

    def store(self, slot: int, keys: Iterable[int], head: int | None = None) -> bool:
        """The worker holds these pages; `head` is the one of them that begins a chain.

        False when that is more than it can hold: its events cannot be right.
        """
        holder, parts = self._holders[slot], self._parts
        bit, digest = holder.bit, holder.digest
        new: list[int] = []
        for key in keys:
            part = parts[key % _NUM_PARTS]
            mask = part.get(key)
            if mask is None:
                part[key] = bit
            elif mask & bit:
                continue
            else:
                part[key] = self._share(mask | bit)
            digest ^= key
            new.append(key)
        holder.log.extend(new)
        holder.digest = digest
        holder.num_pages += len(new)
        if head is not None:
            holder.heads.add(head)
        fits = holder.num_pages <= holder.limit
        if holder.num_pages > self._max_pages:
            self._leave_out(holder)
        elif len(holder.log) > 2 * holder.num_pages + _SLACK:
            self._rewrite_log(holder)
        return fits

    def remove(self, slot: int, keys: Iterable[int]) -> None:
        """The worker holds these pages no more; ones that it was not known to hold are fine."""
        holder = self._holders[slot]
        gone = self._drop(holder.bit, keys)
        for key in gone:
            holder.digest ^= key
        holder.num_pages -= len(gone)
        holder.heads.difference_update(gone)

    def clear(self, slot: int) -> None:
        """The worker holds nothing."""
        holder = self._holders[slot]
        self._drop(holder.bit, holder.log)
        holder.reset()

    def predict(self, slot: int, digests: Sequence[bytes], held: int) -> tuple[bytes, ...]:
        """The worker will soon hold `digests`, of which it holds the first `held`. Returns what to `unpredict`."""
        bit, predicted = 1 << slot, self._predicted
        missing = tuple(digests[held:])
        if predicted.keys().isdisjoint(missing):  # as most prompts: no loop over the pages of a long one
            predicted.update(dict.fromkeys(missing, bit))
            return missing
        new = tuple(digest for digest in missing if not predicted.get(digest, 0) & bit)
        for digest in new:
            predicted[digest] = predicted.get(digest, 0) | bit
        return new

    def unpredict(self, slot: int, digests: Sequence[bytes]) -> None:
        """What `predict` returned has been reported by now, or will never be."""
        bit, predicted = 1 << slot, self._predicted
        masks = list(map(predicted.pop, digests, repeat(0)))
        if set(masks) <= {bit, 0}:
            return
        for digest, mask in zip(digests, masks, strict=True):
            if mask & ~bit:
                predicted[digest] = mask & ~bit

    def match(self, digests: Sequence[bytes]) -> dict[int, int]:
        """Slot -> number of leading pages of the chain `digests` that its worker holds, for those that hold any."""
        if not digests:
            return {}
        parts, soon, low = self._parts, self._predicted.get, int.from_bytes
        runs: dict[int, int] = {}
        key = low(digests[0][:8], "little") & KEY_MASK
        first = parts[key % _NUM_PARTS].get(key, 0) | soon(digests[0], 0)
        # Each entry: `at_low` holds page low, `at_high` holds page high; whoever is missing above drops out between.
        pending = [(0, first, len(digests), 0)] if first else []
        while pending:
            begin, at_begin, end, at_end = pending.pop()
            if end - begin == 1:
                for slot in _bits(at_begin & ~at_end):
                    runs[slot] = end
                continue
            middle = (begin + end) // 2
            digest = digests[middle]
            key = low(digest[:8], "little") & KEY_MASK
            # Whoever holds a later page holds this one, and nobody joins on the way: true of the workers even
            # where this index has missed an event.
            at_middle = ((parts[key % _NUM_PARTS].get(key, 0) | soon(digest, 0)) & at_begin) | at_end
            if at_middle != at_begin:
                pending.append((begin, at_begin, middle, at_middle))
            if at_middle != at_end:
                pending.append((middle, at_middle, end, at_end))
        return runs

    def check_integrity(self) -> None:
        """Raise AssertionError unless masks and the workers' records say the same."""
        counts, digests = dict.fromkeys(self._holders, 0), dict.fromkeys(self._holders, 0)
        by_mask: defaultdict[int, list[int]] = defaultdict(list)
        for part in filter(None, self._parts):
            for key, mask in part.items():
                by_mask[mask].append(key)
        assert 0 not in by_mask, "a page that nobody holds was kept"
        for mask, keys in by_mask.items():  # few: most pages are held by the same workers as their neighbours
            digest = reduce(xor, keys)
            for slot in _bits(mask):
                counts[slot] += len(keys)
                digests[slot] ^= digest
        for slot, holder in self._holders.items():
            assert counts[slot] == holder.num_pages, "a worker's count is off"
            assert digests[slot] == holder.digest, "a worker's digest is off"
            logged = {key for key in holder.log if self._parts[key % _NUM_PARTS].get(key, 0) & holder.bit}
            assert len(logged) == holder.num_pages, "a page that is held is not in the log"
        assert all(self._predicted.values()), "an empty prediction was kept"

    # ------------------------------------------------------------------------------------------------- private

    def _share(self, mask: int) -> int:
        if len(self._shared) >= _MAX_SHARED_MASKS:
            self._shared.clear()  # pages keep what they have
        return self._shared.setdefault(mask, mask)

    def _drop(self, bit: int, keys: Iterable[int]) -> list[int]:
        """Take one worker out of the masks of `keys`; returns those of them that it was in."""
        parts, gone = self._parts, []
        for key in keys:
            part = parts[key % _NUM_PARTS]
            mask = part.get(key, 0)
            if not mask & bit:
                continue
            gone.append(key)
            if mask == bit:
                del part[key]
            else:
                part[key] = self._share(mask ^ bit)
        return gone

    def _rewrite_log(self, holder: _Holder) -> None:
        """Only what is held, each page once."""
        parts, bit = self._parts, holder.bit
        held = dict.fromkeys(key for key in holder.log if parts[key % _NUM_PARTS].get(key, 0) & bit)
        holder.log = array("q", held)

    def _leave_out(self, holder: _Holder) -> None:
        """Forget what was stored longest ago until an eighth of the room is free; heads of chains only when there is
        nothing else.
        """
        parts, bit, heads = self._parts, holder.bit, holder.heads
        surplus = holder.num_pages - (self._max_pages - self._max_pages // 8)
        held = dict.fromkeys(key for key in holder.log if parts[key % _NUM_PARTS].get(key, 0) & bit)
        victims = list(islice((key for key in held if key not in heads), surplus))
        victims += list(islice((key for key in held if key in heads), surplus - len(victims)))
        for key in self._drop(bit, victims):
            holder.digest ^= key
            del held[key]
        heads.difference_update(victims)
        holder.log = array("q", held)
        holder.num_pages -= len(victims)
        holder.complete = False
        self.num_left_out += len(victims)
