"""What a worker decides, whichever part of requests it is there for: any worker computes prompts for others, takes over
what others computed, and runs whole requests. Pure.
"""

from typing import assert_never

from engine.core.engine import EngineCore
from engine.core.errors import InvalidRequest, Overloaded
from engine.core.messages import (
    Adopt,
    Cancel,
    Command,
    DeliverTicket,
    Drain,
    Finished,
    Generate,
    PeerJoined,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
)
from engine.core.result import StepResult
from engine.core.types import FinishReason
from engine.server.role import Word
from kv_transfer.adopting import AdoptingLegs
from kv_transfer.api import (
    DropPeer,
    JoinPeer,
    PeerReady,
    PeerRefused,
    TransferCommand,
    TransferOutcome,
)
from kv_transfer.holding import HoldingLegs, TicketSealer

Effects = list[Word | TransferCommand]


class WorkerRole:
    """The engine.server.role.Role of every worker. Each kind of leg is owned by the object for it; requests that
    stay here whole have no leg at all.
    """

    def __init__(self, core: EngineCore, sealer: TicketSealer) -> None:
        """`sealer` says who this worker is and how its pages lie."""
        self._core = core
        self._holding = HoldingLegs(core, sealer)
        self._adopting = AdoptingLegs(core, sealer.layout)

    def on_command(self, command: Command, now: float) -> Effects:
        """A router asked for something."""
        match command:
            case Generate(request) | Prefill(request) | Adopt(request):
                try:
                    return self._begin(command)
                except (InvalidRequest, Overloaded) as error:
                    return [Finished(request.id, FinishReason.ERROR, error.message)]
            case DeliverTicket(id, ticket):
                return self._adopting.deliver(id, ticket)
            case Cancel(id):
                if id in self._holding:
                    return [*self._holding.let_go(id, "cancelled")]
                self._core.abort(id)  # the rest follows from the Finished that the core reports
                return self._adopting.cancel(id)
            case Release(id):
                return [*self._holding.let_go(id, "released")] if id in self._holding else []
            case PeerJoined(info):
                return [JoinPeer(info)]
            case PeerLeft(worker_id, incarnation):
                return [DropPeer(worker_id, incarnation)]
            case SendPrefixes() | Drain():
                return []  # not about requests: the shell sees to it
            case _:
                assert_never(command)

    def on_result(self, result: StepResult, now: float) -> Effects:
        """A step ended. The start of an adopted request is told by the worker that computed its prompt."""
        effects: Effects = [started for started in result.started if started.id not in self._adopting]
        effects += self._holding.on_result(result, now)  # first: a ticket goes out before the end of its leg
        effects += self._adopting.on_result(result)
        return effects

    def on_outcome(self, outcome: TransferOutcome, now: float) -> Effects:
        """The transfer thread reports."""
        match outcome:
            case PeerReady(worker_id, incarnation, transport, bytes_per_s, message):
                return [PeerStatus(worker_id, incarnation, True, transport, bytes_per_s, message)]
            case PeerRefused(worker_id, incarnation, message):
                return [PeerStatus(worker_id, incarnation, False, message=message)]
            case _:
                return self._adopting.on_outcome(outcome)

    def _begin(self, command: Generate | Prefill | Adopt) -> Effects:
        match command:
            case Generate(request):
                self._core.submit(request)
            case Prefill(request):
                self._holding.prefill(request)
            case Adopt(request):
                return self._adopting.adopt(request)
        return []
