"""What happens to the router core, and what it wants done. Pure values."""

from dataclasses import dataclass

from engine.core.errors import BatonError
from engine.core.messages import Command, Frame
from engine.core.types import WorkerInfo
from router.api import Delta, GenerateCall

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class CallArrived:
    """A client wants `call`; the shell knows it as `key`."""

    key: int
    call: GenerateCall


@dataclass(frozen=True, slots=True)
class CallCancelled:
    """The client of call `key` went away. Unknown keys are fine."""

    key: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A session with this incarnation is open."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The session with incarnation `worker` (see `peer_key`) is over. Unknown ones are fine."""

    worker: str
    message: str
    dead: bool = False
    """True when the incarnation itself is known to be over; else only the way to it may be."""


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """No new work for worker `worker`; what decodes there moves to others. Unknown ones are fine.

    As if its load reports said so, for who wants it gone without asking it.
    """

    worker: str


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """Incarnation `worker` said `frame`."""

    worker: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; several times in `HealthConfig.hung_after_s`."""


Event = CallArrived | CallCancelled | WorkerJoined | WorkerGone | WorkerDraining | FrameArrived | Tick

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Give `command` to incarnation `worker`; nothing happens when it is gone (a WorkerGone follows)."""

    worker: str
    command: Command


@dataclass(frozen=True, slots=True)
class Emit:
    """Give `delta` to the client of call `key`. The call is over when the delta has a finish reason."""

    key: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Fail:
    """End call `key` with `error`."""

    key: int
    error: BatonError


Effect = Send | Emit | Fail
