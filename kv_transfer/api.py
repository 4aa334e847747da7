"""What a decode role and the transfer manager say to each other. Pure values.

Every handoff that was opened ends with exactly one `Proven` or one `Settled`:

    Proven              the destination pages hold the prefix, bit for bit, and are the caller's
    Broken ... Settled  it failed; between the two the destination pages may still be written: quarantine them
    Settled             the answer to CancelHandoff

With reads in flight `Held` comes before that Settled, perhaps again: only the pages that it names may still be written.

Every peer that joined is answered by PeerReady or PeerRefused, and again whenever that changes.
"""

from array import array
from dataclasses import dataclass
from enum import StrEnum

from engine.core.types import TokenLogprob, WorkerInfo


class Cause(StrEnum):
    """Why a handoff broke: the label of a counter, and what a supervisor may act on."""

    TICKET = "ticket"
    """Not authentic, malformed, or it contradicts what is known of the request."""
    LAYOUT = "layout"
    DIGEST = "digest"
    """The ticket is about another prompt, salt or model."""
    GENERATION = "generation"
    """A source page got a new owner before the read was over."""
    PEER = "peer"
    """The prefill worker is unknown, unproven, dead or hung."""
    TRANSPORT = "transport"
    EXPIRED = "expired"
    """The prefill side's lease ran out."""
    DEADLINE = "deadline"


# ---------------------------------------------------------------- caller -> manager


@dataclass(frozen=True, slots=True)
class OpenHandoff:
    """Pull the KV of all of `tokens` into `pages`, of which the first `num_local` hold it already.

    tokens  [ page 0 ][ page 1 ][ page 2 ][ part of page 3 ]
    pages   [ local  ][ local  ][ to pull                  ]        num_local = 2
    """

    id: int
    """Of the request attempt."""
    tokens: "array[int]"
    root: bytes
    """engine.core.digest.root_digest of the request's salt and the model."""
    pages: tuple[int, ...]
    """The destination page of every page of the prefix, in order; a last one may be partial."""
    num_local: int
    deadline_s: float
    """On this worker's clock."""


@dataclass(frozen=True, slots=True)
class OfferTicket:
    """A sealed ticket of handoff `id`, in any order, repeated or not. Unknown ids are ignored."""

    id: int
    ticket: bytes


@dataclass(frozen=True, slots=True)
class CancelHandoff:
    """Stop handoff `id`. Idempotent; unknown ids are ignored. `Settled` follows if it was still open."""

    id: int


@dataclass(frozen=True, slots=True)
class JoinPeer:
    """Connect to that incarnation and let the pair prove itself."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class DropPeer:
    """That incarnation is gone: break what depends on it."""

    worker_id: str
    incarnation: int


TransferCommand = OpenHandoff | OfferTicket | CancelHandoff | JoinPeer | DropPeer

# ---------------------------------------------------------------- manager -> caller


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What decode needs to go on after the prompt, besides its pages."""

    token: int
    logprob: TokenLogprob | None
    cached_tokens: int
    """Prompt tokens that prefill found in its cache: decode sees every one of them as cached."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The pages of handoff `id` are proven. Terminal."""

    id: int
    first: FirstToken
    transfer_bytes: int
    transfer_s: float
    """From the first ticket to the proof."""
    pulled_pages: int
    local_pages: int


@dataclass(frozen=True, slots=True)
class Broken:
    """Handoff `id` cannot succeed any more; `Settled` follows, at once or when the last read has ended."""

    id: int
    cause: Cause
    message: str


@dataclass(frozen=True, slots=True)
class Held:
    """Handoff `id` is over, and of its destination pages only `pages` may still be written, each by a posted read."""

    id: int
    pages: frozenset[int]


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing will write the destination pages of handoff `id` any more. Terminal."""

    id: int


@dataclass(frozen=True, slots=True)
class PeerReady:
    """The pair proved itself: layout, a golden page bit for bit, its generation, and bandwidth."""

    worker_id: str
    incarnation: int
    transport: str
    bytes_per_s: float
    message: str
    """Why this transport and not a preferred one; empty when it was the first choice."""


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """Nothing is pulled from that incarnation. `permanent` ones are not tried again."""

    worker_id: str
    incarnation: int
    message: str
    permanent: bool


TransferOutcome = Proven | Broken | Held | Settled | PeerReady | PeerRefused
