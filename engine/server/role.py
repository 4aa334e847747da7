"""The port between a worker's engine loop and what makes it a prefill or a decode worker. Pure.

A role decides; it calls its EngineCore (pure as well) and returns everything else as effects. `C` is what it may
ask the transfer thread for, `O` what that answers; a role that moves no pages has `Never` for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from engine.core.messages import Adopted, Command, Finished, HandoffFailed, PeerStatus, Started, TicketIssued
from engine.core.result import StepResult

C_co = TypeVar("C_co", covariant=True)
O_contra = TypeVar("O_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more will be said about request `id`. Finished and HandoffFailed imply it."""

    id: int
    how: str
    """For metrics: released, cancelled or expired."""


RequestWord = Started | Finished | TicketIssued | Adopted | HandoffFailed | Ended
"""What a role can say to the router of a request."""

Word = RequestWord | PeerStatus
"""What a role can say. Token rows are no part of it: they go from step to frame."""


class Role(Protocol[C_co, O_contra]):
    """Called by one thread, in the order of events. `now` is seconds on the worker's own clock.

    A role keeps no time of its own: the core ends requests and leases, the transfer thread handoffs.
    """

    def on_command(self, command: Command, now: float) -> Sequence[Word | C_co]:
        """A router asked for something."""

    def on_result(self, result: StepResult, now: float) -> Sequence[Word | C_co]:
        """A step ended. Answers with what of `started` and `finished` the router shall see, and what follows."""

    def on_outcome(self, outcome: O_contra, now: float) -> Sequence[Word | C_co]:
        """The transfer thread reports."""
