"""A lease: the right of one request to a list of pages, and the one table of what may happen to it.

A request that computes here starts PROVEN: its pages hold what this worker wrote. The destination of a handoff
starts RESERVED and is PROVEN once all that others wrote into it has been checked. Pages with an operation in flight
(a transfer, a launched step) are never freed: their lease is QUARANTINED until the operation is terminal, however
long that takes.
"""

from enum import StrEnum

from engine.core.errors import IllegalEvent
from engine.core.radix_tree import Node
from engine.core.types import Request


class LeaseState(StrEnum):
    """What the private pages of a lease are for."""

    RESERVED = "reserved"
    FILLING = "filling"
    PROVEN = "proven"
    RELEASED = "released"
    QUARANTINED = "quarantined"


class LeaseEvent(StrEnum):
    """What can happen to a lease."""

    FILL = "fill"
    """An operation that writes into the pages is posted."""
    LAND = "land"
    """An operation is terminal, others are not."""
    SETTLE = "settle"
    """The last operation is terminal."""
    PROVE = "prove"
    """The pages are the owner's own from here on."""
    ABANDON = "abandon"
    """The owner is gone while something may still write."""
    RELEASE = "release"
    """The owner is gone and nothing can write."""


_S, _E = LeaseState, LeaseEvent

TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (_S.RESERVED, _E.FILL): _S.FILLING,
    (_S.RESERVED, _E.PROVE): _S.PROVEN,
    (_S.RESERVED, _E.RELEASE): _S.RELEASED,
    (_S.FILLING, _E.FILL): _S.FILLING,
    (_S.FILLING, _E.LAND): _S.FILLING,
    (_S.FILLING, _E.SETTLE): _S.RESERVED,
    (_S.FILLING, _E.ABANDON): _S.QUARANTINED,
    (_S.PROVEN, _E.RELEASE): _S.RELEASED,
    (_S.PROVEN, _E.ABANDON): _S.QUARANTINED,
    (_S.QUARANTINED, _E.LAND): _S.QUARANTINED,
    (_S.QUARANTINED, _E.SETTLE): _S.RELEASED,
}


class Lease:
    """Pages of one owner. Only KVCache changes the lists; the state changes by the methods here.

    pages  [ inherited and published: the tree's, locked | private: this lease's alone ]
           0                                              num_shared                    len(pages)
    A published page whose tokens the tree had already stays private; it is kept in `duplicates` too.
    """

    __slots__ = ("duplicates", "frontier", "node", "num_ops", "num_shared", "num_valid", "pages", "request", "state")

    def __init__(self, request: Request, node: Node, pages: list[int], num_valid: int, state: LeaseState) -> None:
        self.request = request
        self.node = node
        """End of the locked path in the radix tree; it covers the first `num_shared` pages."""
        self.pages = pages
        self.num_shared = len(pages)
        self.duplicates: list[int] = []
        self.num_valid = num_valid
        """Tokens whose KV is final, from 0."""
        self.state = state
        self.num_ops = 0
        """Operations in flight that may write into the pages."""
        self.frontier: tuple[Node, bytes] | None = None
        """The next full page that this lease will publish, so that others can wait for it: (prefix, tokens)."""

    @property
    def private(self) -> list[int]:
        """The pages that this lease alone owns."""
        return self.duplicates + self.pages[self.num_shared :]

    def apply(self, event: LeaseEvent) -> None:
        """Change the state by the table. Raises IllegalEvent, and changes nothing, for an event it does not list."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise IllegalEvent(f"lease of request {self.request.id} is {self.state} and got {event}")
        self.state = state

    def fill(self) -> None:
        """An operation that writes into the pages is posted."""
        self.apply(LeaseEvent.FILL)
        self.num_ops += 1

    def settle(self) -> None:
        """One operation is terminal; the last one ends FILLING and QUARANTINED."""
        self.apply(LeaseEvent.SETTLE if self.num_ops == 1 else LeaseEvent.LAND)
        self.num_ops -= 1
