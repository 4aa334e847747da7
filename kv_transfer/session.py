"""One handoff as its decode side lives it: a state machine that turns tickets and ended reads into effects. Pure.

The proof. A source page is bumped to a new generation before its next owner writes to it, so if its generation,
read after its data, is the one on the ticket, the data is what the ticket's digest names. One read of all
generations after the last data read proves all pages at once.

The quarantine. A read that was posted cannot be taken back: until it has ended its destination pages may still change,
so a session that failed or was cancelled stays CANCELLING, says which pages are Held, and Settled when none is.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.core.errors import IllegalEvent
from engine.core.types import KVLayout
from kv_transfer.api import Broken, Cause, FirstToken, Held, OpenHandoff, Proven, Settled
from kv_transfer.layout import layout_hash
from kv_transfer.plan import Coverage, Grid, Pairs, PrefixDigests, num_pages_for, split_pairs
from kv_transfer.reslice import Route, routes
from kv_transfer.ticket import Ticket
from kv_transfer.transports.base import Completion, OpStatus, PageRead


class SessionState(StrEnum):
    """BOUND: no ticket yet. DONE and FAILED are terminal."""

    BOUND = "bound"
    PULLING = "pulling"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLING = "cancelling"


class SessionEvent(StrEnum):
    """What can happen to a session, after the arguments of a call were judged."""

    TICKET = "ticket accepted"
    READ_ENDED = "read ended"
    ALL_READ = "all data read"
    ALL_PROVEN = "all pages proven"
    FAULT = "fault, nothing in flight"
    FAULT_IN_FLIGHT = "fault, reads in flight"
    DRAINED = "last read ended"


_S, _E = SessionState, SessionEvent

SESSION_TABLE: dict[SessionState, dict[SessionEvent, SessionState]] = {
    _S.BOUND: {_E.TICKET: _S.PULLING, _E.FAULT: _S.FAILED},
    _S.PULLING: {
        _E.TICKET: _S.PULLING,
        _E.READ_ENDED: _S.PULLING,
        _E.ALL_READ: _S.VERIFYING,
        _E.ALL_PROVEN: _S.DONE,
        _E.FAULT: _S.FAILED,
        _E.FAULT_IN_FLIGHT: _S.CANCELLING,
    },
    _S.VERIFYING: {
        _E.READ_ENDED: _S.VERIFYING,
        _E.ALL_PROVEN: _S.DONE,
        _E.FAULT: _S.FAILED,
        _E.FAULT_IN_FLIGHT: _S.CANCELLING,
    },
    _S.CANCELLING: {_E.READ_ENDED: _S.CANCELLING, _E.DRAINED: _S.FAILED},
    _S.DONE: {},
    _S.FAILED: {},
}
"""The one table; docs/handoff.md draws it."""


@dataclass(frozen=True, slots=True)
class Source:
    """The prefill worker that a ticket names, as this worker knows it."""

    peer: str
    """transports.base.peer_key."""
    layout: KVLayout
    """That it joined with: check_layouts passed."""
    num_pages: int
    max_read_bytes: int
    """Of one read, as long as one page is not larger."""


@dataclass(frozen=True, slots=True)
class GenerationRead:
    """Read the generations of remote `pages`."""

    op: int
    peer: str
    pages: tuple[int, ...]


Effect = PageRead | GenerationRead | Proven | Broken | Held | Settled


class _Pull:
    """What is known once the source is: whose pages, of which size, and what of them was asked for."""

    def __init__(self, handoff: OpenHandoff, mine: KVLayout, source: Source) -> None:
        theirs = source.layout
        self.peer = source.peer
        self.page_size = theirs.page_size
        self.layout_hash = layout_hash(theirs)
        num_tokens = len(handoff.tokens)
        grid = Grid.of(mine.page_size, theirs.page_size)
        self.coverage = Coverage(grid, handoff.pages, handoff.num_local, num_tokens, mine.num_layers)
        self.digests = PrefixDigests(handoff.root, handoff.tokens, theirs.page_size)
        """At the source's page ends: the digest of a prefix depends on where it was cut."""
        self.routes = routes(mine, theirs)
        """By part within the larger page: what moves from which rank there to which rank here."""


class Session:
    """One handoff. Late and repeated messages are harmless; every method returns what is to be done."""

    def __init__(self, handoff: OpenHandoff, layout: KVLayout, ops: Iterator[int]) -> None:
        """`ops` numbers reads; no number may come twice from it. `layout` is that of this worker's pages."""
        self.handoff = handoff
        self.state = SessionState.BOUND
        self._layout = layout
        self._ops = ops
        self._pull: _Pull | None = None
        """Set by the first ticket of a joined worker."""
        self._in_flight: dict[int, Sequence[int]] = {}
        """The destination pages of each read."""
        self._num_held = 0
        """Reads that were in flight when it was last said which pages are held."""
        self._first: FirstToken | None = None
        self._expires_s = float("inf")
        self._started_s = 0.0
        self._num_bytes = 0
        self._check_pages()

    @property
    def closed(self) -> bool:
        """True once the terminal outcome was returned."""
        return self.state in (SessionState.DONE, SessionState.FAILED)

    @property
    def peer(self) -> str | None:
        """Whom pages are pulled from; None before the first ticket."""
        return self._pull.peer if self._pull is not None else None

    @property
    def reads_in_flight(self) -> frozenset[int]:
        """Numbers of the reads that were returned and have not ended."""
        return frozenset(self._in_flight)

    @property
    def gives_up_s(self) -> float:
        """When `on_tick` will break this session if nothing else happens."""
        if self.state in (SessionState.BOUND, SessionState.PULLING, SessionState.VERIFYING):
            return min(self.handoff.deadline_s, self._expires_s)
        return float("inf")

    def on_ticket(self, ticket: Ticket, source: Source | None, now: float) -> list[Effect]:
        """Judge a ticket and ask for the layers of pages that it makes available and that are missing here.

        `source` is the ticket's worker; None if it is unknown or unproven.
        """
        if self.state not in (SessionState.BOUND, SessionState.PULLING):
            return []  # a late or repeated ticket of a handoff whose outcome is decided
        if source is None:
            return self.on_fault(Cause.PEER, f"prefill worker {ticket.worker_id} is not joined with this worker")
        pull = self._pull = self._pull or _Pull(self.handoff, self._layout, source)
        refusal = self._refusal(ticket, source, pull)
        if refusal is not None:
            return self.on_fault(*refusal)
        if self.state is SessionState.BOUND:
            self._started_s = now
        self._go(SessionEvent.TICKET)
        self._first = self._first or ticket.first
        self._expires_s = min(self._expires_s, now + ticket.expires_ms / 1000)
        return [*self._reads(ticket, source, pull), *self._advance(now)]

    def on_completion(self, completion: Completion, now: float) -> list[Effect]:
        """A read of this session ended or is failing. Raises IllegalEvent if it was not in flight here."""
        if completion.op not in self._in_flight:
            raise IllegalEvent(f"handoff {self.handoff.id}: read {completion.op} is not in flight")
        cause = Cause.PEER if completion.peer_lost else Cause.TRANSPORT
        if completion.status is OpStatus.FAILING:
            return self.on_fault(cause, completion.message)
        del self._in_flight[completion.op]
        self._num_bytes += completion.num_bytes
        if self.state is SessionState.CANCELLING:
            return [*self._drain()]
        if completion.status is OpStatus.FAILED:
            return self.on_fault(cause, completion.message or "the read failed")
        self._go(SessionEvent.READ_ENDED)
        if self.state is SessionState.VERIFYING:
            return self._verify(completion.generations, now)
        return self._advance(now)

    def on_tick(self, now: float) -> list[Effect]:
        """Time passed: break if the deadline or the prefill side's lease is over."""
        if now < self.gives_up_s:
            return []
        if now >= self.handoff.deadline_s:
            return self.on_fault(Cause.DEADLINE, "the request's deadline passed during the handoff")
        return self.on_fault(Cause.EXPIRED, "the lease of the prefill worker ran out during the handoff")

    def on_fault(self, cause: Cause, message: str) -> list[Effect]:
        """The handoff cannot succeed, says someone outside (the peer is lost) or inside. Idempotent."""
        if self.closed or self.state is SessionState.CANCELLING:
            return []
        return [Broken(self.handoff.id, cause, message), *self._stop()]

    def on_cancel(self) -> list[Effect]:
        """The caller wants its pages back. Idempotent."""
        if self.closed or self.state is SessionState.CANCELLING:
            return []
        return self._stop()

    def on_withdrawn(self, ops: Collection[int]) -> list[Held | Settled]:
        """Of a session that is CANCELLING, reads `ops` were not posted and never will be; all others were."""
        for op in ops:
            del self._in_flight[op]
        return self._drain()

    # ------------------------------------------------------------ inside

    def _go(self, event: SessionEvent) -> None:
        target = SESSION_TABLE[self.state].get(event)
        if target is None:
            raise IllegalEvent(f"handoff {self.handoff.id}: {event.value!r} in state {self.state.value!r}")
        self.state = target

    def _check_pages(self) -> None:
        handoff = self.handoff
        num_pages = num_pages_for(len(handoff.tokens), self._layout.page_size)
        full_pages = len(handoff.tokens) // self._layout.page_size
        if len(handoff.pages) != num_pages or not 0 <= handoff.num_local <= full_pages:
            raise IllegalEvent(
                f"handoff {handoff.id}: {len(handoff.tokens)} tokens need {num_pages} pages, of which full ones may be "
                f"local; given are {len(handoff.pages)}, of which {handoff.num_local} local"
            )

    def _refusal(self, ticket: Ticket, source: Source, pull: _Pull) -> tuple[Cause, str] | None:
        """Why this ticket must not be believed; None if it may."""
        if ticket.id != self.handoff.id:
            return Cause.TICKET, f"a ticket of request {ticket.id} was delivered for request {self.handoff.id}"
        if pull.peer != source.peer:
            return Cause.TICKET, f"tickets of two workers for one attempt: {pull.peer} and {source.peer}"
        if ticket.layout_hash != pull.layout_hash:
            return Cause.LAYOUT, f"the ticket's page layout is not the one that {ticket.worker_id} joined with"
        if not self._fits(ticket, source):
            return Cause.TICKET, "the ticket's ranges do not fit the prompt or the pools"
        if ticket.digest != pull.digests.at(ticket.token_end):
            return Cause.DIGEST, f"the ticket is about another prompt: digests at token {ticket.token_end} differ"
        first_page = ticket.token_begin // pull.page_size
        if pull.coverage.contradicts(first_page, zip(ticket.pages, ticket.generations, strict=True)):
            return Cause.TICKET, "two tickets name different source pages for the same tokens"
        return None

    def _fits(self, ticket: Ticket, source: Source) -> bool:
        page_size = source.layout.page_size
        num_tokens = len(self.handoff.tokens)
        return (
            ticket.token_begin % page_size == 0
            and ticket.token_begin < ticket.token_end <= num_tokens
            and (ticket.token_end % page_size == 0 or ticket.token_end == num_tokens)
            and len(ticket.pages) == num_pages_for(ticket.token_end - ticket.token_begin, page_size)
            and ticket.layer_end <= self._layout.num_layers
            and max(ticket.pages) < source.num_pages
        )

    def _reads(self, ticket: Ticket, source: Source, pull: _Pull) -> Iterator[PageRead]:
        sources = list(zip(ticket.pages, ticket.generations, strict=True))
        layers = (ticket.layer_begin, ticket.layer_end)
        wanted = pull.coverage.claim(ticket.token_begin // pull.page_size, sources, layers)
        for (part, span), pairs in wanted.items():
            parts = pull.routes[part]
            # Ranks take turns, so that all links are busy, and what is posted at any time is about whole pages.
            one = sum(_read(0, source, pairs[:1], span, route).num_bytes(self._layout) for route in parts)
            for some in split_pairs(pairs, one, source.max_read_bytes):
                for route in parts:
                    read = _read(next(self._ops), source, some, span, route)
                    self._in_flight[read.op] = read.dst
                    yield read

    def _advance(self, now: float) -> list[Effect]:
        """After data: verify when the prompt is complete and nothing is in flight."""
        pull = self._pull
        assert pull is not None
        if self._first is None or self._in_flight or not pull.coverage.complete:
            return []
        sources = pull.coverage.sources
        if not sources:
            return self._finish(now)  # every page was here already
        self._go(SessionEvent.ALL_READ)
        op = next(self._ops)
        self._in_flight[op] = ()
        return [GenerationRead(op, pull.peer, tuple(page for page, _ in sources))]

    def _verify(self, generations: tuple[int, ...], now: float) -> list[Effect]:
        assert self._pull is not None
        expected = tuple(generation for _, generation in self._pull.coverage.sources)
        if generations != expected:
            changed = sum(a != b for a, b in zip(generations, expected, strict=False))
            return self.on_fault(Cause.GENERATION, f"{changed} source pages got a new owner before the read was over")
        return self._finish(now)

    def _finish(self, now: float) -> list[Effect]:
        assert self._first is not None
        self._go(SessionEvent.ALL_PROVEN)
        handoff = self.handoff
        pulled = len(handoff.pages) - handoff.num_local
        seconds = now - self._started_s
        return [Proven(handoff.id, self._first, self._num_bytes, seconds, pulled, handoff.num_local)]

    def _stop(self) -> list[Effect]:
        if self._in_flight:
            self._go(SessionEvent.FAULT_IN_FLIGHT)
            return []
        self._go(SessionEvent.FAULT)
        return [Settled(self.handoff.id)]

    def _drain(self) -> list[Held | Settled]:
        if self._in_flight:
            self._go(SessionEvent.READ_ENDED)
            if len(self._in_flight) == self._num_held:
                return []
            self._num_held = len(self._in_flight)
            return [Held(self.handoff.id, frozenset().union(*self._in_flight.values()))]
        self._go(SessionEvent.DRAINED)
        return [Settled(self.handoff.id)]


def _read(op: int, source: Source, pairs: Pairs, layers: tuple[int, int], route: Route) -> PageRead:
    return PageRead(
        op,
        source.peer,
        tuple(src for src, _ in pairs),
        tuple(dst for _, dst in pairs),
        *layers,
        cut=route.cut,
        src_rank=route.src_rank,
        dst_rank=route.dst_rank,
    )
