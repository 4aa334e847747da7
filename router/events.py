"""What happens to the router core, and what it wants done. Pure values."""

from dataclasses import dataclass

from engine.core.errors import BatonError
from engine.core.messages import Command, Frame, KVEvent
from engine.core.types import WorkerInfo
from router.api import Delta, GenerateCall
from router.prefix_feed import Ask

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
class ModelsAllowed:
    """Workers of these models (their hashes) may be here side by side: one is being replaced by the other."""

    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """Incarnation `worker` said `frame`."""

    worker: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; several times in `HealthConfig.hung_after_s`."""


@dataclass(frozen=True, slots=True)
class FeedBatch:
    """A numbered batch of incarnation `worker`'s public feed, live, replayed, or all that it holds."""

    worker: str
    seq: int
    events: list[KVEvent]


@dataclass(frozen=True, slots=True)
class FeedState:
    """Who publishes the feed of `worker`, and what a reader that has all batches up to `seq` has; None: not said."""

    worker: str
    incarnation: int
    seq: int | None
    view_digest: int


@dataclass(frozen=True, slots=True)
class FeedReplayed:
    """The answer to a replay is over."""

    worker: str


Event = (
    CallArrived
    | CallCancelled
    | WorkerJoined
    | WorkerGone
    | WorkerDraining
    | ModelsAllowed
    | FrameArrived
    | Tick
    | FeedBatch
    | FeedState
    | FeedReplayed
)

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


@dataclass(frozen=True, slots=True)
class AskFeed:
    """Ask the public feed of incarnation `worker`."""

    worker: str
    ask: Ask


@dataclass(frozen=True, slots=True)
class LeaveFeed:
    """Stop to read the public feed of incarnation `worker`: its session says the same from now on."""

    worker: str


Effect = Send | Emit | Fail | AskFeed | LeaveFeed
