"""What makes a worker a prefill worker: it computes prompts, issues tickets for final pages and holds them. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import assert_never

from engine.core.digest import root_digest
from engine.core.engine import EngineCore
from engine.core.errors import IllegalEvent, InvalidRequest, Overloaded
from engine.core.messages import (
    Adopt,
    Cancel,
    Command,
    DeliverTicket,
    Finished,
    Generate,
    PeerJoined,
    PeerLeft,
    Prefill,
    Release,
    SendPrefixes,
    TicketIssued,
)
from engine.core.result import FinalPages, StepResult
from engine.core.types import FinishReason, KVLayout, Request
from engine.server.role import Ended, Word
from kv_transfer.api import FirstToken, TransferCommand, TransferOutcome
from kv_transfer.layout import layout_hash
from kv_transfer.plan import PrefixDigests
from kv_transfer.ticket import Ticket, seal_ticket


class LegState(StrEnum):
    """COMPUTING: queued or in steps. HELD: the last ticket is out, the pages wait under a lease."""

    COMPUTING = "computing"
    HELD = "held"
    ENDED = "ended"


class LegEvent(StrEnum):
    """What can happen to a prefill leg."""

    PAGES = "pages final"
    LAST_PAGES = "last pages final"
    FINISHED = "finished"
    LET_GO = "let go"


_S, _E = LegState, LegEvent

LEG_TABLE: dict[LegState, dict[LegEvent, LegState]] = {
    _S.COMPUTING: {_E.PAGES: _S.COMPUTING, _E.LAST_PAGES: _S.HELD, _E.FINISHED: _S.ENDED},
    _S.HELD: {_E.LET_GO: _S.ENDED},
    _S.ENDED: {},
}


@dataclass(slots=True)
class Leg:
    """One prompt that is computed here for another worker. Mutable; the role's own."""

    request: Request
    digests: PrefixDigests
    cached_tokens: int = 0
    state: LegState = LegState.COMPUTING

    def go(self, event: LegEvent) -> None:
        """Change the state by the table. Raises IllegalEvent, and changes nothing, for an event it does not list."""
        state = LEG_TABLE[self.state].get(event)
        if state is None:
            raise IllegalEvent(f"prefill leg {self.request.id}: {event.value!r} in state {self.state.value!r}")
        self.state = state


@dataclass(frozen=True, slots=True)
class TicketSealer:
    """Who signs: this incarnation of this worker, for pages of this layout, with the cluster key."""

    worker_id: str
    incarnation: int
    layout: KVLayout
    key: bytes

    def seal(self, leg: Leg, final: FinalPages, first: FirstToken | None, now: float) -> bytes:
        """The ticket for pages of `leg` that are final."""
        request = leg.request
        digest = leg.digests.at(final.end)
        assert digest is not None, "final pages end at a page boundary or at the prompt's end"
        return seal_ticket(
            Ticket(
                id=request.id,
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                layout_hash=layout_hash(self.layout),
                token_begin=final.start,
                token_end=final.end,
                layer_begin=0,
                layer_end=self.layout.num_layers,
                pages=tuple(final.pages),
                generations=tuple(final.generations),
                digest=digest,
                expires_ms=max(0, int((request.deadline_s - now) * 1000)),
                first=first,
            ),
            self.key,
        )


class PrefillRole:
    """Decides for a prefill worker. It pulls no pages, so it asks nothing of the transfer thread, which only serves.

    The lease of held pages ends by Release, by Cancel (the router's session ended, say) or at the request's deadline.
    """

    name = "prefill"

    def __init__(self, core: EngineCore, sealer: TicketSealer) -> None:
        self._core = core
        self._sealer = sealer
        self._legs: dict[int, Leg] = {}

    # ------------------------------------------------------------ events

    def on_command(self, command: Command, now: float) -> list[Word | TransferCommand]:
        """A router asked for something."""
        match command:
            case Prefill(request):
                return self._submit(request, hold=True)
            case Generate(request):
                return self._submit(request, hold=False)
            case Adopt(request):
                message = "a prefill worker takes over no pages"
                return [Finished(request.id, FinishReason.ERROR, message)]
            case Cancel(id):
                return self._let_go(id, "cancelled")
            case Release(id):
                return self._let_go(id, "released")
            case DeliverTicket() | PeerJoined() | PeerLeft() | SendPrefixes():
                return []
            case _:
                assert_never(command)

    def on_result(self, result: StepResult, now: float) -> list[Word | TransferCommand]:
        """A step ended: tickets for what became final, ends as they are."""
        for started in result.started:
            leg = self._legs.get(started.id)
            if leg is not None:
                leg.cached_tokens = started.cached_tokens
        for finished in result.finished:
            leg = self._legs.pop(finished.id, None)
            if leg is not None:
                leg.go(LegEvent.FINISHED)
        tickets = self._tickets(result, now) if result.final_pages else ()
        expired = chain.from_iterable(self._let_go(id, "expired") for id in result.expired)
        return [*result.started, *tickets, *result.finished, *expired]

    def on_outcome(self, outcome: TransferOutcome, now: float) -> list[Word | TransferCommand]:
        """Nothing was asked of the transfer thread."""
        return []

    # ------------------------------------------------------------ inside

    def _submit(self, request: Request, *, hold: bool) -> list[Word | TransferCommand]:
        try:
            self._core.submit(request, hold=hold)
        except (InvalidRequest, Overloaded) as error:
            return [Finished(request.id, FinishReason.ERROR, error.message)]
        if hold:
            layout = self._sealer.layout
            root = root_digest(request.cache_salt, layout.model_hash)
            self._legs[request.id] = Leg(request, PrefixDigests(root, request.tokens, layout.page_size))
        return []

    def _let_go(self, id: int, how: str) -> list[Word | TransferCommand]:
        """The router has no use for `id` any more. What is still computed ends with a Finished from the core."""
        self._core.abort(id)
        leg = self._legs.get(id)
        if leg is None or leg.state is not LegState.HELD:
            return []
        leg.go(LegEvent.LET_GO)
        del self._legs[id]
        return [Ended(id, how)]

    def _tickets(self, result: StepResult, now: float) -> Iterator[TicketIssued]:
        for final in result.final_pages:
            leg = self._legs.get(final.id)
            if leg is None:
                continue  # ended in the same step
            leg.go(LegEvent.LAST_PAGES if final.last else LegEvent.PAGES)
            first = self._first_token(leg, result) if final.last else None
            yield TicketIssued(final.id, self._sealer.seal(leg, final, first, now), final.last)

    def _first_token(self, leg: Leg, result: StepResult) -> FirstToken:
        """What decode goes on from: drawn in the same step that made the last pages final."""
        row = result.ids.index(leg.request.id)
        logprob = result.logprobs[row] if result.logprobs else None
        return FirstToken(result.tokens[row], logprob, leg.cached_tokens)
