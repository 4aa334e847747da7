"""A request while it lives here, and the one table of its stages. Only the scheduler and the engine touch it."""

from array import array
from enum import StrEnum

from engine.core.errors import IllegalEvent
from engine.core.lease import Lease
from engine.core.types import Request


class Stage(StrEnum):
    """Where a request stands."""

    QUEUED = "queued"
    """Waits for pages and a row; holds nothing."""
    RECEIVING = "receiving"
    """Its pages come from another worker."""
    READY = "ready"
    """Owns its pages, waits for a row."""
    RUNNING = "running"
    DRAINING = "draining"
    """Lost its row while a launched step names it; queued again once that step is committed."""
    HELD = "held"
    """Computed; its pages wait to be handed off."""
    ENDED = "ended"


class Leg(StrEnum):
    """Which part of a request runs here."""

    WHOLE = "whole"
    FIRST = "first"
    """Prompt and one token; then the pages are held for whoever runs the rest."""
    LAST = "last"
    """The prompt's pages come from elsewhere."""


class Event(StrEnum):
    """What moves a request from stage to stage."""

    RESERVE = "reserve"
    ADOPT = "adopt"
    ADMIT = "admit"
    PREEMPT = "preempt"
    REQUEUE = "requeue"
    HOLD = "hold"
    END = "end"


TRANSITIONS: dict[tuple[Stage, Event], Stage] = {
    (Stage.QUEUED, Event.RESERVE): Stage.RECEIVING,
    (Stage.QUEUED, Event.ADMIT): Stage.RUNNING,
    (Stage.RECEIVING, Event.ADOPT): Stage.READY,
    (Stage.RECEIVING, Event.REQUEUE): Stage.QUEUED,
    (Stage.READY, Event.ADMIT): Stage.RUNNING,
    (Stage.RUNNING, Event.PREEMPT): Stage.DRAINING,
    (Stage.RUNNING, Event.HOLD): Stage.HELD,
    (Stage.DRAINING, Event.REQUEUE): Stage.QUEUED,
    (Stage.DRAINING, Event.HOLD): Stage.HELD,
    **{(stage, Event.END): Stage.ENDED for stage in Stage if stage is not Stage.ENDED},
}

NOT_LAUNCHED = -1


class RequestState:
    """One request, mutable.

    tokens  [ KV written ...... | in launched steps .... | known, to be planned ... ]
            0                   num_computed             num_scheduled              len(tokens)
    num_scheduled runs ahead of len(tokens) when a launched step is going to draw the token.
    """

    __slots__ = (
        "id",
        "last_step",
        "lease",
        "leg",
        "max_len",
        "num_announced",
        "num_computed",
        "num_known",
        "num_logprobs",
        "num_scheduled",
        "order",
        "request",
        "stage",
        "started",
        "tokens",
    )

    def __init__(self, request: Request, seq: int, max_len: int, leg: Leg) -> None:
        self.request = request
        self.id = request.id
        self.order = (request.priority, seq)
        """Smaller runs first and is preempted last."""
        self.max_len = max_len
        """Tokens at which the request ends here, prompt included."""
        self.leg = leg
        self.stage = Stage.QUEUED
        self.tokens = array("i", request.tokens)
        self.lease: Lease | None = None
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_known = len(self.tokens)
        """Tokens when it last got its pages: up to here pages are published as soon as they are final."""
        self.num_announced = 0
        """Tokens of a held request whose pages were announced as final."""
        self.num_logprobs = 0
        """Prompt positions whose log probabilities were delivered."""
        self.started = False
        """Its first admission was reported."""
        self.last_step = NOT_LAUNCHED
        """The newest launched step with a row of this request; NOT_LAUNCHED when the executor does not know it."""

    def apply(self, event: Event) -> None:
        """Change the stage by the table. Raises IllegalEvent, and changes nothing, for an event it does not list."""
        stage = TRANSITIONS.get((self.stage, event))
        if stage is None:
            raise IllegalEvent(f"request {self.id} is {self.stage} and got {event}")
        self.stage = stage
