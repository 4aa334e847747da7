"""What a router and a worker say to each other: commands one way, frames the other. Pure values.

One bidirectional stream joins one router and one worker. A worker answers each engine step with one Frame that
carries the tokens of all rows, never one message a token. engine.wire converts these to and from protobuf.
"""

from dataclasses import dataclass, field

from engine.core.types import FinishReason, Request, TokenLogprob, WorkerInfo, WorkerLoad

# ---------------------------------------------------------------- router -> worker


@dataclass(frozen=True, slots=True)
class Generate:
    """Run the whole request here: colocated mode, short prompts, recompute after a failed handoff."""

    request: Request


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the prompt, draw one token, publish tickets as pages become final, hold the pages under a lease."""

    request: Request


@dataclass(frozen=True, slots=True)
class Adopt:
    """Reserve pages for the request, pull what is missing as tickets arrive, go on from num_prompt.

    `request.tokens` is the prompt (and what earlier attempts emitted): the worker computes the digest from it.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class DeliverTicket:
    """A sealed ticket of the prefill leg of request `id`, passed on unread by the router."""

    id: int
    ticket: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """End request `id` here at once and free what it holds. Idempotent; unknown ids are fine."""

    id: int


@dataclass(frozen=True, slots=True)
class Release:
    """The handoff of request `id` is over: the prefill side may free its lease. Idempotent."""

    id: int


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """Another worker that pages may be pulled from."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """That incarnation is gone; nothing may be pulled from it any more."""

    worker_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class SendPrefixes:
    """Say what the prefix cache holds: PagesCleared, then PagesStored of all of it; and from now on what changes.

    Sent by a router that joined or has lost its view. One that reads the public feed need not.
    """


@dataclass(frozen=True, slots=True)
class Drain:
    """Leave: announce it in each load report, and exit once nothing is left here or `grace_s` is over."""

    grace_s: float


Command = Generate | Prefill | Adopt | DeliverTicket | Cancel | Release | PeerJoined | PeerLeft | SendPrefixes | Drain

# ---------------------------------------------------------------- worker -> router


@dataclass(frozen=True, slots=True)
class Started:
    """Request `id` left the queue: `cached_tokens` of its tokens (also of emitted ones, when it resumes) were there."""

    id: int
    cached_tokens: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The one terminal outcome of request `id` on this worker. `message` explains ERROR."""

    id: int
    reason: FinishReason
    message: str = ""
    stop_token: int | None = None
    """The stop token that ended it, when reason is STOP."""


@dataclass(frozen=True, slots=True)
class TicketIssued:
    """Pages of request `id` are final; the ticket is opaque to the router. `last` closes the prompt."""

    id: int
    ticket: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Adopted:
    """Every page of the handoff of `id` is proven and owned here; the prefill side can let go."""

    id: int
    transfer_bytes: int
    transfer_s: float
    pulled_pages: int
    local_pages: int
    """Pages that were already here and did not move."""


@dataclass(frozen=True, slots=True)
class HandoffFailed:
    """Request `id` could not be adopted, or its source took its pages back; its leg here is over and settled."""

    id: int
    message: str
    peer_lost: bool = False


DEVICE = "device"
"""The tier of pages that lie in the memory of the device that computes; "host" is its machine's memory."""


@dataclass(frozen=True, slots=True)
class PagesStored:
    """Full pages entered the prefix cache: page digests in chain order below `parent` (b"" for a root)."""

    parent: bytes
    digests: tuple[bytes, ...]
    tier: str = DEVICE
    tokens: bytes = b""
    """Int32 token ids of all these pages, for consumers of the public feed; not sent to routers."""


@dataclass(frozen=True, slots=True)
class PagesRemoved:
    """Pages left the prefix cache."""

    digests: tuple[bytes, ...]
    tier: str = DEVICE


@dataclass(frozen=True, slots=True)
class PagesCleared:
    """No page is in the prefix cache any more; a snapshot begins with this."""


KVEvent = PagesStored | PagesRemoved | PagesCleared


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Whether pages can be pulled from a peer that joined; said again whenever it changes, to every router."""

    worker_id: str
    incarnation: int
    ready: bool
    transport: str = ""
    """What the pair proved itself over, when it is ready."""
    bytes_per_s: float = 0.0
    """Measured by the proof, when it is ready."""
    message: str = ""
    """Why not, or why not over a preferred transport."""


@dataclass(slots=True)
class Frame:
    """All that one worker has to say after one step. Token rows are parallel lists; an id may repeat.

    Mutable because the engine loop fills it; nobody changes it after it was sent.
    """

    step_id: int = 0
    ids: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] | None = None
    prompt_logprobs: list[tuple[int, list[TokenLogprob]]] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    tickets: list[TicketIssued] = field(default_factory=list)
    adopted: list[Adopted] = field(default_factory=list)
    handoff_failed: list[HandoffFailed] = field(default_factory=list)
    peers: list[PeerStatus] = field(default_factory=list)
    kv_events: list[KVEvent] = field(default_factory=list)
    kv_seq: int = 0
    """Counts the batches of kv_events of this incarnation from 1. After a gap the router asks with SendPrefixes."""
    load: WorkerLoad | None = None

    def __bool__(self) -> bool:
        return bool(
            self.ids
            or self.prompt_logprobs
            or self.started
            or self.finished
            or self.tickets
            or self.adopted
            or self.handoff_failed
            or self.peers
            or self.kv_events
            or self.load
        )
