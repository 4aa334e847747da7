"""Which source pages go to which destination pages, in reads of bounded size. Pure."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from engine.core.digest import extend_digest, page_digests

Pairs = list[tuple[int, int]]
"""(source page, destination page)."""


def num_pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold `num_tokens`, the last one maybe partial."""
    return -(-num_tokens // page_size)


class PrefixDigests:
    """Digests of one prefix at every page boundary and at its end, computed once."""

    def __init__(self, root: bytes, tokens: "array[int]", page_size: int) -> None:
        self._root, self._tokens, self._page_size = root, tokens, page_size
        self._full: list[bytes] | None = None

    def at(self, end: int) -> bytes | None:
        """The digest of the first `end` tokens; None where no ticket may end (inside a page, past the prefix)."""
        full, rest = divmod(end, self._page_size)
        num_tokens = len(self._tokens)
        if not 0 < end <= num_tokens or (rest and end != num_tokens):
            return None
        if self._full is None:
            self._full = page_digests(self._root, self._tokens, self._page_size)
        parent = self._full[full - 1] if full else self._root
        return extend_digest(parent, self._tokens[end - rest :]) if rest else parent


def missing_ranges(have: int, begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of [begin, end) whose bits are clear in the mask `have`."""
    ranges = []
    for clear, run in groupby(range(begin, end), lambda bit: not have >> bit & 1):
        if clear:
            bits = list(run)
            ranges.append((bits[0], bits[-1] + 1))
    return ranges


def split_pairs(pairs: Pairs, part_bytes: int, max_bytes: int) -> Iterator[Pairs]:
    """`pairs` in source order, cut so that one read moves at most `max_bytes` (but at least one page's part)."""
    ordered = sorted(pairs)
    count = max(1, max_bytes // part_bytes)
    for start in range(0, len(ordered), count):
        yield ordered[start : start + count]


def page_runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first page, number of pages) of each run of neighbours, in order."""
    start = count = 0
    for page in pages:
        if count and page == start + count:
            count += 1
            continue
        if count:
            yield start, count
        start, count = page, 1
    if count:
        yield start, count


class Coverage:
    """Which layers of which missing pages were asked for already, and from where.

    A page is known by its index in the prefix. Tickets may come in any order, repeat, and cover layers in parts.
    """

    def __init__(self, pages: Sequence[int], num_local: int, num_layers: int) -> None:
        self._pages, self._num_local = pages, num_local
        self._full_mask = (1 << num_layers) - 1
        self._masks: dict[int, int] = {}
        self._sources: dict[int, tuple[int, int]] = {}

    @property
    def complete(self) -> bool:
        """Every layer of every missing page was asked for."""
        return len(self._masks) == len(self._pages) - self._num_local and all(
            mask == self._full_mask for mask in self._masks.values()
        )

    @property
    def sources(self) -> list[tuple[int, int]]:
        """(source page, generation) of every page asked for."""
        return sorted(self._sources.values())

    def contradicts(self, first_index: int, sources: Iterable[tuple[int, int]]) -> bool:
        """True if an earlier ticket named another page or generation for one of these indices."""
        return any(self._sources.get(first_index + i, source) != source for i, source in enumerate(sources))

    def claim(
        self, first_index: int, sources: Sequence[tuple[int, int]], layers: tuple[int, int]
    ) -> dict[tuple[int, int], Pairs]:
        """Mark these pages' layers as asked for; by range of layers, the pairs that were not before."""
        wanted: dict[tuple[int, int], Pairs] = {}
        begin, end = layers
        mask = (1 << end) - (1 << begin)
        ranges: dict[int, list[tuple[int, int]]] = {}  # few masks differ: most pages come in the same parts
        for index, source in enumerate(sources, first_index):
            if index < self._num_local:
                continue
            have = self._masks.get(index, 0)
            if have not in ranges:
                ranges[have] = missing_ranges(have, begin, end)
            for span in ranges[have]:
                wanted.setdefault(span, []).append((source[0], self._pages[index]))
            self._masks[index] = have | mask
            self._sources[index] = source
        return wanted
