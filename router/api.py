"""What the HTTP and gRPC doors need from the router behind them. Pure values and one protocol."""

from array import array
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from engine.core.messages import PeerStatus
from engine.core.types import FinishReason, Sampling, TokenLogprob, WorkerInfo, WorkerLoad


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One sequence to generate. A client request with n > 1 or several prompts is several calls."""

    request_id: str
    tokens: "array[int]"
    sampling: Sampling
    timeout_s: float
    tenant: str = ""
    """Who it is for, as the door authenticated it: its cached prefixes are that tenant's alone."""
    priority: int = 0
    weight: float = 1.0
    """The tenant's share of a busy service."""
    ttft_slo_s: float | None = None
    """Refuse it at once when its first token is expected later than this."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time to the first token went, seconds; and who did it.

        ttft_s = queue_s + admit_s + prefill_s + deliver_s

    The client gets the first token as soon as it is drawn, so the handoff comes after it: `transfer_s` and
    `first_step_s` are what the second token waits for, and 0 for a request that stays on one worker.
    """

    queue_s: float = 0.0
    """At the router: from arrival until the attempt was sent that drew the first token."""
    admit_s: float = 0.0
    """At the worker that computed the prompt: until it began."""
    prefill_s: float = 0.0
    """From then until the first token was here: computing, and both ways on the wire."""
    deliver_s: float = 0.0
    """From then until it was handed to the client's connection. The doors fill it in."""
    ttft_s: float = 0.0
    transfer_s: float = 0.0
    """Pulling and proving pages, as the decode worker timed it."""
    first_step_s: float = 0.0
    """From the proof of the pages to the first token that the decode worker drew."""
    prefill_worker: str = ""
    decode_worker: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one call, in order. The last delta, and only it, has a finish reason."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """On the first delta, when asked for."""
    cached_tokens: int | None = None
    """On the first delta: prompt tokens whose KV was found in a cache."""
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    timing: Timing | None = None
    """On the first delta, as far as it is known then, and on the last."""


class Generator(Protocol):
    """The router as its doors see it."""

    def generate(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
        """Stream one call. Raises BatonError (deadline, overload, no worker). `aclose()` cancels."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the router sees it now."""

    info: WorkerInfo
    state: str
    """One word for people: joining, ready, refused, lost."""
    detail: str = ""
    """Why it is not ready, in plain words."""
    load: WorkerLoad | None = None
    load_age_s: float = 0.0
    peers: tuple[PeerStatus, ...] = ()
    """What it says of pulling pages from others."""
    num_requests: int = 0
    """Of this router, with a part there."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The whole service as the router sees it now. `ready` is true when a request could be served."""

    ready: bool
    detail: str = ""
    """Why it is not ready, in plain words."""
    workers: tuple[WorkerStatus, ...] = ()
    queued_requests: int = 0
    running_requests: int = 0
    prompt_tokens: int = 0
    """Of requests that got their first token, since the router started."""
    cached_tokens: int = 0
    """Of those, found in a cache: over prompt_tokens it is the hit rate."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """What the router knows of one worker's prefix cache."""

    worker: str
    source: str
    """Where its events come from: session or public."""
    synced: bool
    tokens: tuple[tuple[str, int], ...]
    """(tier, tokens)."""
    digest: int | None
    """The keys of all pages, XORed; None where pages were left out. Routers that know the same have the same."""
    said: int | None
    """What the worker said of it last; None: nothing yet."""


@dataclass(frozen=True, slots=True)
class PrefixHolders:
    """A prefix that prompts of this router had in common, and who holds how much of it."""

    head: tuple[int, ...]
    """The first tokens."""
    num_tokens: int
    uses: int
    holders: tuple[tuple[str, int], ...]
    """(worker, leading tokens that it holds, or will soon), the longest first."""


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """What is where."""

    views: tuple[CacheView, ...]
    prefixes: tuple[PrefixHolders, ...]
    num_pages: int
    """Distinct pages in the index."""


class StatusSource(Protocol):
    """What the doors show of the service: health checks and the status page."""

    def status(self) -> ServiceStatus:
        """A snapshot; cheap enough for every health check."""
