"""The destination of a handoff: pages that others computed are pulled here, proven, and gone on from. Pure.

Adopt -> first ticket -> reserve pages -> pull what is missing, ticket by ticket -> proven -> decode
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from engine.core.digest import root_digest
from engine.core.engine import EngineCore
from engine.core.errors import IllegalEvent, InvalidRequest, Overloaded
from engine.core.messages import Adopted, Finished, HandoffFailed
from engine.core.result import Reserved, StepResult
from engine.core.types import FinishReason, KVLayout, Request
from engine.server.role import Word
from kv_transfer.api import (
    Broken,
    CancelHandoff,
    Cause,
    Held,
    OfferTicket,
    OpenHandoff,
    Proven,
    Settled,
    TransferCommand,
)

MAX_EARLY_REQUESTS = 64
"""Requests whose tickets may wait for an Adopt that is still under way."""

Effects = list[Word | TransferCommand]


class LegState(StrEnum):
    """Where a handoff stands on this side."""

    EXPECTED = "expected"
    """No ticket yet: nothing is asked for. Whoever holds destination pages has a source that holds its own, so no two
    workers can wait for each other's pages."""
    WAITING = "waiting"
    """For destination pages."""
    FILLING = "filling"
    """A handoff is open in the transfer thread."""
    DECODING = "decoding"
    QUARANTINED = "quarantined"
    """Over, but pages of it may still be written: until the transfer thread says that they are not."""
    ENDED = "ended"


class LegEvent(StrEnum):
    """What can happen to a decode leg."""

    TICKET = "first ticket"
    RESERVED = "reserved"
    PROVEN = "proven"
    BROKEN = "broken"
    HELD = "held"
    SETTLED = "settled"
    FINISHED = "finished"


_S, _E = LegState, LegEvent

LEG_TABLE: dict[LegState, dict[LegEvent, LegState]] = {
    _S.EXPECTED: {_E.TICKET: _S.WAITING, _E.FINISHED: _S.ENDED},
    _S.WAITING: {_E.RESERVED: _S.FILLING, _E.FINISHED: _S.ENDED},
    _S.FILLING: {_E.PROVEN: _S.DECODING, _E.BROKEN: _S.QUARANTINED, _E.FINISHED: _S.QUARANTINED},
    _S.DECODING: {_E.FINISHED: _S.ENDED},
    # The outcome of a handoff that was cancelled may have been on its way already.
    _S.QUARANTINED: {
        _E.BROKEN: _S.QUARANTINED,
        _E.HELD: _S.QUARANTINED,
        _E.PROVEN: _S.ENDED,
        _E.SETTLED: _S.ENDED,
    },
    _S.ENDED: {},
}


@dataclass(slots=True)
class Leg:
    """One request whose prompt is computed elsewhere. Mutable; the role's own."""

    request: Request
    tickets: list[bytes] = field(default_factory=list)
    """That came before the pages were reserved."""
    state: LegState = LegState.EXPECTED

    def go(self, event: LegEvent) -> LegState:
        """Change the state by the table. Raises IllegalEvent, and changes nothing, for an event it does not list."""
        state = LEG_TABLE[self.state].get(event)
        if state is None:
            raise IllegalEvent(f"decode leg {self.request.id}: {event.value!r} in state {self.state.value!r}")
        self.state = state
        return state


class AdoptingLegs:
    """Owns the handoffs to this worker, from Adopt to the end of the request or of its quarantine.

    Each leg is told to the router once: by Finished or by HandoffFailed.
    """

    def __init__(self, core: EngineCore, layout: KVLayout) -> None:
        self._core = core
        self._layout = layout
        self._legs: dict[int, Leg] = {}
        self._early: OrderedDict[int, list[bytes]] = OrderedDict()
        self._told: set[int] = set()
        """Ids whose HandoffFailed was said and whose Finished the core has yet to report: not said again."""

    def __contains__(self, id: int) -> bool:
        return id in self._legs

    # ------------------------------------------------------------ commands

    def adopt(self, request: Request) -> Effects:
        """Begin a leg. Raises as EngineCore.reserve."""
        self._core.check(request)
        leg = self._legs[request.id] = Leg(request)
        effects: Effects = []
        for ticket in self._early.pop(request.id, []):
            effects += self._take_ticket(leg, ticket)
        return effects

    def deliver(self, id: int, ticket: bytes) -> Effects:
        """A ticket of leg `id`, which may not have begun yet."""
        leg = self._legs.get(id)
        if leg is not None:
            return self._take_ticket(leg, ticket)
        self._early.setdefault(id, []).append(ticket)
        if len(self._early) > MAX_EARLY_REQUESTS:
            self._early.popitem(last=False)
        return []

    def cancel(self, id: int) -> Effects:
        """The router has no use for `id` any more. What the core knows ends with the Finished that it reports."""
        self._early.pop(id, None)
        leg = self._legs.get(id)
        if leg is None or leg.state is not LegState.EXPECTED:
            return []
        return self._finished(Finished(id, FinishReason.CANCELLED))

    def _take_ticket(self, leg: Leg, ticket: bytes) -> Effects:
        id = leg.request.id
        if leg.state is LegState.FILLING:
            return [OfferTicket(id, ticket)]
        if leg.state is LegState.EXPECTED:
            try:
                self._core.reserve(leg.request)
            except (InvalidRequest, Overloaded) as error:
                return self._finished(Finished(id, FinishReason.ERROR, error.message))
            leg.go(LegEvent.TICKET)
        if leg.state is LegState.WAITING:
            leg.tickets.append(ticket)
        return []

    # ------------------------------------------------------------ events

    def on_result(self, result: StepResult) -> Effects:
        """A step ended: open the handoffs that got their pages, pass on ends, quarantine what ended while filling."""
        effects: Effects = []
        for reserved in result.reserved:
            effects += self._open(reserved)
        for finished in result.finished:
            effects += self._finished(finished)
        return effects

    def on_outcome(self, outcome: Proven | Broken | Held | Settled) -> Effects:
        """The transfer thread reports on a handoff."""
        match outcome:
            case Proven():
                return self._proven(outcome)
            case Broken(id, cause, message):
                return self._broken(id, cause, message)
            case Held(id, pages):
                self._legs[id].go(LegEvent.HELD)
                self._core.narrow(id, pages)
                return []
            case Settled(id):
                self._legs[id].go(LegEvent.SETTLED)
                self._settle(id)
                return []

    # ------------------------------------------------------------ the core's results

    def _open(self, reserved: Reserved) -> Effects:
        id = reserved.id
        leg = self._legs[id]
        if not self._core.fill(id):
            return []  # it ended in the same step
        leg.go(LegEvent.RESERVED)
        request = leg.request
        handoff = OpenHandoff(
            id=id,
            tokens=request.tokens,
            root=root_digest(request.cache_salt, self._layout.model_hash),
            pages=tuple(reserved.pages),
            num_local=reserved.num_local // self._layout.page_size,
            deadline_s=request.deadline_s,
        )
        tickets, leg.tickets = leg.tickets, []
        return [handoff, *(OfferTicket(id, ticket) for ticket in tickets)]

    def _finished(self, finished: Finished) -> Effects:
        id = finished.id
        if id in self._told:
            self._told.remove(id)
            return []
        leg = self._legs.get(id)
        if leg is None:
            return [finished]
        if leg.go(LegEvent.FINISHED) is LegState.QUARANTINED:
            return [finished, CancelHandoff(id)]
        del self._legs[id]
        return [finished]

    # ------------------------------------------------------------ outcomes of transfers

    def _proven(self, proven: Proven) -> Effects:
        id = proven.id
        leg = self._legs[id]
        if leg.go(LegEvent.PROVEN) is LegState.ENDED:
            self._settle(id)
            return []
        self._core.settle(id)
        self._core.prove(id, len(leg.request.tokens))
        self._core.adopt(id, [proven.first.token])
        return [Adopted(id, proven.transfer_bytes, proven.transfer_s, proven.pulled_pages, proven.local_pages)]

    def _broken(self, id: int, cause: Cause, message: str) -> Effects:
        leg = self._legs[id]
        was_filling = leg.state is LegState.FILLING
        leg.go(LegEvent.BROKEN)
        if not was_filling:
            return []  # cancelled before; the router knows
        self._core.abort(id)
        self._told.add(id)
        return [HandoffFailed(id, f"{cause.value}: {message}", peer_lost=cause is Cause.PEER)]

    def _settle(self, id: int) -> None:
        """Nothing writes the pages of a leg that is over any more."""
        self._core.settle(id)
        del self._legs[id]
