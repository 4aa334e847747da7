"""The source of a handoff: prompts computed here for another worker, their tickets, and their held pages. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from engine.core.digest import root_digest
from engine.core.engine import EngineCore
from engine.core.errors import IllegalEvent
from engine.core.messages import HandoffFailed, TicketIssued
from engine.core.result import FinalPages, StepResult
from engine.core.types import KVLayout, Request
from engine.server.role import Ended, Word
from kv_transfer.api import FirstToken
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


class HoldingLegs:
    """Owns the prompts that this worker computes for others, from Prefill to Release. The transfer thread only serves.

    The lease of held pages ends by Release, by Cancel (the router's session ended, say) or at the request's deadline.
    """

    def __init__(self, core: EngineCore, sealer: TicketSealer) -> None:
        self._core = core
        self._sealer = sealer
        self._legs: dict[int, Leg] = {}

    def __contains__(self, id: int) -> bool:
        return id in self._legs

    def prefill(self, request: Request) -> None:
        """Begin a leg. Raises as EngineCore.submit."""
        self._core.submit(request, hold=True)
        layout = self._sealer.layout
        root = root_digest(request.cache_salt, layout.model_hash)
        self._legs[request.id] = Leg(request, PrefixDigests(root, request.tokens, layout.page_size))

    def let_go(self, id: int, how: str) -> list[Word]:
        """The router has no use for leg `id` any more. What is still computed ends with a Finished from the core."""
        leg = self._legs[id]
        self._core.abort(id)
        return self._end_held(leg, how) if leg.state is LegState.HELD else []

    def on_result(self, result: StepResult, now: float) -> list[Word]:
        """A step ended: tickets for what became final, and the leases that ran out."""
        for started in result.started:
            leg = self._legs.get(started.id)
            if leg is not None:
                leg.cached_tokens = started.cached_tokens
        for finished in result.finished:
            leg = self._legs.pop(finished.id, None)
            if leg is not None:
                leg.go(LegEvent.FINISHED)
        words: list[Word] = list(self._tickets(result, now)) if result.final_pages else []
        for id in result.retracted:
            self._legs.pop(id).go(LegEvent.FINISHED)
            words.append(HandoffFailed(id, "its pages were needed for more urgent requests"))
        for id in result.expired:
            words += self._end_held(self._legs[id], "expired")
        return words

    def _end_held(self, leg: Leg, how: str) -> list[Word]:
        leg.go(LegEvent.LET_GO)
        del self._legs[leg.request.id]
        return [Ended(leg.request.id, how)]

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
