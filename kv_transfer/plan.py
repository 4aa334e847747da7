"""Which source pages go to which destination pages, in reads of bounded size. Pure."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Grid:
    """Pages of two sizes over the same tokens. A part is a page of the smaller size.

    there   [    page 0     |    page 1     ]     src_parts = 4
    here    [ page 0| page 1| page 2| page 3]     dst_parts = 2
    parts   [ 0 | 1 | 2 | 3 | ...                 only one of the two is ever more than 1
    """

    part: int
    """Tokens."""
    src_parts: int
    dst_parts: int

    @staticmethod
    def of(mine: int, theirs: int) -> "Grid":
        """From the page sizes, of which one is a multiple of the other."""
        part = min(mine, theirs)
        return Grid(part, theirs // part, mine // part)


class Coverage:
    """Which layers of which missing parts were asked for already, and from where.

    A part is known by its index in the prefix; between equal page sizes it is a page. Tickets may come in any order,
    repeat, and cover layers in parts.
    """

    def __init__(self, grid: Grid, pages: Sequence[int], num_local: int, num_tokens: int, num_layers: int) -> None:
        """`pages` of this worker, of which `num_local` need nothing."""
        self._grid, self._pages = grid, pages
        self._begin, self._end = num_local * grid.dst_parts, num_pages_for(num_tokens, grid.part)
        self._full_mask = (1 << num_layers) - 1
        self._masks: dict[int, int] = {}
        self._sources: dict[int, tuple[int, int]] = {}

    @property
    def complete(self) -> bool:
        """Every layer of every missing part was asked for."""
        return len(self._masks) == max(0, self._end - self._begin) and all(
            mask == self._full_mask for mask in self._masks.values()
        )

    @property
    def sources(self) -> list[tuple[int, int]]:
        """(source page, generation) of every source page of which something was asked for."""
        return sorted(self._sources.values())

    def contradicts(self, first_page: int, sources: Iterable[tuple[int, int]]) -> bool:
        """True if an earlier ticket named another page or generation for one of these source pages."""
        return any(self._sources.get(first_page + i, source) != source for i, source in enumerate(sources))

    def claim(
        self, first_page: int, sources: Sequence[tuple[int, int]], layers: tuple[int, int]
    ) -> dict[tuple[int, tuple[int, int]], Pairs]:
        """Mark the layers of these source pages' parts as asked for, and say which were not before.

        The answer's key is (part within the larger of the two pages, range of layers).
        """
        wanted: dict[tuple[int, tuple[int, int]], Pairs] = {}
        begin, end = layers
        mask = (1 << end) - (1 << begin)
        ranges: dict[int, list[tuple[int, int]]] = {}  # few masks differ: most parts come in the same ranges
        src_parts, dst_parts = self._grid.src_parts, self._grid.dst_parts
        ratio = src_parts * dst_parts
        first = max(self._begin, first_page * src_parts)
        for index in range(first, min(self._end, (first_page + len(sources)) * src_parts)):
            page = index // src_parts
            source = sources[page - first_page]
            have = self._masks.get(index, 0)
            if have not in ranges:
                ranges[have] = missing_ranges(have, begin, end)
            for span in ranges[have]:
                wanted.setdefault((index % ratio, span), []).append((source[0], self._pages[index // dst_parts]))
            self._masks[index] = have | mask
            self._sources[page] = source
        return wanted
