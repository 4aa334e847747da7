"""The one owner of pages: allocator, radix tree and leases together.

    open -> (fill, settle, prove)* -> publish* / extend* -> retire [-> settle* when something was in flight]

Every page is free, in the tree, or private to exactly one lease.
"""

from array import array
from collections import Counter
from collections.abc import Collection, MutableSequence, Sequence
from dataclasses import dataclass

from engine.core.allocator import PageAllocator
from engine.core.errors import IllegalEvent
from engine.core.lease import Lease, LeaseEvent, LeaseState
from engine.core.messages import KVEvent, PagesStored
from engine.core.radix_tree import TOKEN_BYTES, Node, RadixTree
from engine.core.types import Request

Frontier = tuple[Node, bytes]
"""The place of one page in the tree: the prefix before it and its tokens."""


@dataclass(frozen=True, slots=True)
class PageNeed:
    """What a lease is opened with."""

    num_pages: int
    """Pages of the lease, those found in the tree included."""
    max_match: int
    """Tokens that may come from the tree."""
    headroom: int = 0
    """Pages that must still be available afterwards."""
    state: LeaseState = LeaseState.PROVEN
    """PROVEN for a request that computes here, RESERVED for the destination of a handoff."""


PAGE_STATES = {
    LeaseState.RESERVED: "reserved",
    LeaseState.FILLING: "filling",
    LeaseState.PROVEN: "leased",
    LeaseState.QUARANTINED: "quarantined",
}


class KVCache:
    """Matches, allocates, shares and frees pages. Out of pages is None, never an exception."""

    def __init__(
        self, page_size: int, num_pages: int, model_hash: str = "", generations: MutableSequence[int] | None = None
    ) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self._allocator = PageAllocator(num_pages, generations)
        self._tree = RadixTree(page_size, model_hash)
        self._leases: set[Lease] = set()
        self._frontiers: dict[Frontier, Lease] = {}

    @property
    def leases(self) -> Collection[Lease]:
        """Every lease that holds pages, quarantined ones too."""
        return self._leases

    @property
    def num_available(self) -> int:
        """Pages that can be had now: free ones and those that nobody reads."""
        return self._allocator.num_free + self._tree.num_evictable

    def open(self, request: Request, tokens: "array[int]", need: PageNeed) -> "Lease | Frontier | None":
        """A lease for `request`, whose tokens are `tokens` by now.

        Returns the frontier to wait for when the next full page of the match is on its way into the tree, and None
        when there are too few pages.
        """
        data = tokens.tobytes()
        max_pages = need.max_match // self.page_size
        node, pages = self._tree.match(request.cache_salt, data, max_pages)
        self._tree.lock(node)
        if len(pages) < max_pages:
            frontier = (node, self._page_bytes(data, len(pages)))
            if self.is_awaited(frontier, request, need.state):
                self._tree.unlock(node)
                return frontier
        num_fresh = need.num_pages - len(pages)
        fresh = self._allocate(num_fresh) if num_fresh + need.headroom <= self.num_available else None
        if fresh is None:
            self._tree.unlock(node)
            return None
        lease = Lease(request, node, pages, len(pages) * self.page_size, need.state)
        lease.pages += fresh
        self._leases.add(lease)
        self._mark_frontier(lease, data)
        return lease

    def is_awaited(self, frontier: Frontier, request: Request, state: LeaseState) -> bool:
        """Whether `request`, whose lease would be of `state`, waits for that page, which a live lease will publish.

        Nobody waits for the less urgent. A handoff waits for any page on its way; a request that could compute the
        page waits for another that computes it, not for a handoff, which may take as long as a queue elsewhere.
        """
        lease = self._frontiers.get(frontier)
        if lease is None or lease.request.priority > request.priority:
            return False
        return state is LeaseState.RESERVED or lease.state is LeaseState.PROVEN

    def extend(self, lease: Lease, num_pages: int) -> list[int] | None:
        """More pages at the end of a lease; None when there are too few."""
        pages = self._allocate(num_pages)
        if pages is not None:
            lease.pages += pages
        return pages

    def publish(self, lease: Lease, tokens: "array[int]", num_valid: int) -> None:
        """The KV of the first `num_valid` tokens is final: full pages of it go to the tree, still locked by the lease.

        tokens  [ published ........ | newly full .......... | rest of num_valid | not computed ]
                0       num_shared * page_size       num_full * page_size        num_valid
        """
        lease.num_valid = num_valid
        begin, num_full = lease.num_shared, num_valid // self.page_size
        if num_full <= begin:
            return
        fresh = lease.pages[begin:num_full]
        data = tokens[begin * self.page_size :].tobytes()
        cut = len(fresh) * self.page_size * TOKEN_BYTES
        node, duplicates = self._tree.insert(lease.node, data[:cut], fresh)
        self._tree.lock(node, locked=lease.node)
        lease.node, lease.num_shared = node, num_full
        lease.duplicates += duplicates
        if lease.frontier is not None:
            self._unmark_frontier(lease)
            self._mark_frontier(lease, data, skipped=begin)

    def retire(self, lease: Lease, *, step_in_flight: bool = False) -> bool:
        """The owner is gone. Private pages become free and shared ones unlocked, at once if nothing can write to them.

        Returns False when they are quarantined: until `settle` has been called for each operation in flight, the
        launched step included.
        """
        self._unmark_frontier(lease)
        if step_in_flight:
            lease.num_ops += 1
        if lease.num_ops:
            lease.apply(LeaseEvent.ABANDON)
            return False
        lease.apply(LeaseEvent.RELEASE)
        self._free(lease)
        return True

    def narrow(self, lease: Lease, written: Collection[int]) -> None:
        """The one operation on a quarantined lease can still write into pages `written` only: its others become free.

        Raises IllegalEvent, and changes nothing, when it is not quarantined, or for more than that operation.
        """
        if lease.state is not LeaseState.QUARANTINED or lease.num_ops != 1:
            raise IllegalEvent(f"lease of request {lease.request.id} is {lease.state}, with {lease.num_ops} operations")
        private = lease.pages[lease.num_shared :]
        lease.num_valid = min(lease.num_valid, lease.num_shared * self.page_size)
        lease.pages[lease.num_shared :] = [page for page in private if page in written]
        self._allocator.free([page for page in private if page not in written])

    def settle(self, lease: Lease) -> bool:
        """One operation on the lease's pages is terminal. True when that was the end of a quarantine."""
        lease.settle()
        if lease.state is not LeaseState.RELEASED:
            return False
        self._free(lease)
        return True

    def generations(self, pages: Sequence[int]) -> list[int]:
        """The generation of each page, as a ticket carries it."""
        counters = self._allocator.generations
        return [counters[page] for page in pages]

    def drain_events(self) -> list[KVEvent]:
        """What entered and left the tree since the last call, in order."""
        return self._tree.drain_events()

    def stored_pages(self, with_tokens: bool = False) -> list[PagesStored]:
        """The whole tree as PagesStored events, parents first."""
        return self._tree.stored_pages(with_tokens)

    @property
    def num_cached_pages(self) -> int:
        """Pages in the tree."""
        return self._tree.num_pages

    @property
    def view_digest(self) -> int:
        """The keys of all pages in the tree, XORed."""
        return self._tree.view_digest

    def pages_by_state(self) -> dict[str, int]:
        """Pages that are free, cached (in the tree, nobody reads them), shared (in the tree, under some lease), and,
        private to one lease, reserved, filling, leased, quarantined.
        """
        counts = dict.fromkeys(PAGE_STATES.values(), 0)
        for lease in self._leases:
            counts[PAGE_STATES[lease.state]] += len(lease.duplicates) + len(lease.pages) - lease.num_shared
        cached = self._tree.num_evictable
        return {"free": self._allocator.num_free, "cached": cached, "shared": self._tree.num_pages - cached, **counts}

    def check_integrity(self) -> None:
        """Recompute who owns what from the tree and the leases."""
        owned: list[int] = []
        locks: Counter[Node] = Counter()
        for lease in self._leases:
            owned += lease.private
            locks[lease.node] += 1
            assert lease.state is not LeaseState.RELEASED, "a released lease is kept"
            assert (lease.num_ops > 0) == (lease.state in (LeaseState.FILLING, LeaseState.QUARANTINED)), "ops are off"
            assert lease.num_shared <= len(lease.pages) and lease.num_valid <= len(lease.pages) * self.page_size
        owned += self._tree.check_integrity(locks)
        self._allocator.check_integrity(owned)
        assert sum(self.pages_by_state().values()) == self.num_pages, "pages by state do not add up"
        for frontier, lease in self._frontiers.items():
            assert lease in self._leases and lease.frontier == frontier, "somebody waits for a page of a dead lease"

    # ------------------------------------------------------------ private

    def _allocate(self, num_pages: int) -> list[int] | None:
        if num_pages > self.num_available:
            return None
        missing = num_pages - self._allocator.num_free
        if missing > 0:
            self._allocator.free(self._tree.evict(missing))
        return self._allocator.allocate(num_pages)

    def _free(self, lease: Lease) -> None:
        self._allocator.free(lease.private)
        self._tree.unlock(lease.node)
        self._leases.remove(lease)

    def _page_bytes(self, data: bytes, index: int) -> bytes:
        width = self.page_size * TOKEN_BYTES
        return data[index * width : (index + 1) * width]

    def _mark_frontier(self, lease: Lease, data: bytes, skipped: int = 0) -> None:
        """`data`: token bytes from page `skipped` on. The last page counts only when it is full."""
        page = self._page_bytes(data, lease.num_shared - skipped)
        if len(page) == self.page_size * TOKEN_BYTES:
            lease.frontier = (lease.node, page)
            self._frontiers.setdefault(lease.frontier, lease)

    def _unmark_frontier(self, lease: Lease) -> None:
        if lease.frontier is not None and self._frontiers.get(lease.frontier) is lease:
            del self._frontiers[lease.frontier]
        lease.frontier = None
