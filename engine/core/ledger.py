"""Where every page of a worker is, and for how long: what a load report shows of it."""

from engine.core.kv_cache import PAGE_STATES, KVCache
from engine.core.lease import Lease, LeaseState
from engine.core.types import PageCount


class PageLedger:
    """Remembers when each lease was first seen in its state, so that a stranded page shows as an old one.

    It looks when it is asked, about every 0.1 s, and ages are right to that; nothing is kept in the hot paths.
    """

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv
        self._since_s: dict[Lease, tuple[LeaseState, float]] = {}

    def lines(self, now: float) -> tuple[PageCount, ...]:
        """One line for each state; their pages add up to num_pages unless one was lost."""
        seen: dict[Lease, tuple[LeaseState, float]] = {}
        oldest: dict[str, float] = {}
        for lease in self._kv.leases:
            known = self._since_s.get(lease)
            since = known if known is not None and known[0] is lease.state else (lease.state, now)
            seen[lease] = since
            if lease.num_shared:
                oldest["shared"] = min(oldest.get("shared", now), since[1])
            if lease.private:
                state = PAGE_STATES[lease.state]
                oldest[state] = min(oldest.get(state, now), since[1])
        self._since_s = seen
        counts = self._kv.pages_by_state()
        return tuple(PageCount(state, pages, now - oldest.get(state, now)) for state, pages in counts.items())

    def fault(self, *, idle: bool) -> str:
        """What is wrong with the count, in words; empty when nothing is. `idle`: no request is here at all."""
        counts = self._kv.pages_by_state()
        found = sum(counts.values())
        if found != self._kv.num_pages:
            return f"{found} of {self._kv.num_pages} pages are accounted for: {counts}"
        held = {state: pages for state, pages in counts.items() if pages and state not in ("free", "cached")}
        return f"no request is here and pages are held: {held}" if idle and held else ""
