"""Who may write to which page: a free list and one generation a page."""

from array import array
from collections.abc import Iterable, MutableSequence


class PageAllocator:
    """Hands out pages and takes them back. Every page that is out has exactly one owner: a lease or the radix tree.

    Sharing is not counted here: a page that several requests read belongs to the tree, which counts their locks.
    """

    def __init__(self, num_pages: int, generations: MutableSequence[int] | None = None) -> None:
        """`generations`: `num_pages` unsigned 64-bit counters; production passes memory that peers can read."""
        counters: MutableSequence[int] = array("Q", bytes(8 * num_pages)) if generations is None else generations
        if len(counters) != num_pages:
            raise ValueError(f"{len(counters)} generations for {num_pages} pages")
        self.num_pages = num_pages
        self.generations = counters
        self._free = list(range(num_pages - 1, -1, -1))
        self._out = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def allocate(self, num_pages: int) -> list[int] | None:
        """`num_pages` pages for a new owner, or None when fewer are free.

        Each page's generation changes here, before its new owner can write: a reader that finds the generation it
        was told has read what the old owner wrote.
        """
        if num_pages > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(num_pages)]
        for page in pages:
            self.generations[page] += 1
            self._out[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Take pages back. Their content and generation stay until they are allocated again."""
        for page in pages:
            assert self._out[page], f"page {page} freed twice"
            self._out[page] = 0
            self._free.append(page)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """`owned`: every page that some owner claims, each claim once. They and the free pages are all there is."""
        claims = list(owned)
        assert len(set(claims)) == len(claims), "a page has two owners"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert set(claims).isdisjoint(self._free), "an owned page is free"
        assert len(claims) + len(self._free) == self.num_pages, "a page is lost"
        assert all(self._out[page] for page in claims), "an owned page is marked free"
