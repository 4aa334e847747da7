"""What the HTTP and gRPC doors need from the router behind them. Pure values and one protocol."""

from array import array
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from engine.core.messages import PeerStatus
from engine.core.types import FinishReason, Sampling, TokenLogprob, WorkerInfo, WorkerLoad
from router.prefix_outline import PrefixNode
from router.recent import RecentTimes, Timing

__all__ = [
    "Delta",
    "GenerateCall",
    "Generator",
    "PrefixTree",
    "RequestStatus",
    "ServiceStatus",
    "StatusSource",
    "Timing",
    "WorkerStatus",
]


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
class RequestStatus:
    """One sequence that is here now."""

    id: str
    state: str
    prompt_tokens: int
    tokens: int
    """Drawn so far."""
    age_s: float
    prefill_worker: str = ""
    decode_worker: str = ""


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """What the workers' caches hold, for people."""

    nodes: tuple[PrefixNode, ...] = ()
    page_size: int = 0
    left_out: int = 0
    """Pages that are in no node, each worker's for itself: answers, prompts of long ago and of other routers."""


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
    requests: tuple[RequestStatus, ...] = ()
    """The oldest ones."""
    totals: tuple[tuple[str, int], ...] = ()
    """Counts since the router started, by name."""
    recent: RecentTimes | None = None


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

    def prefix_tree(self) -> PrefixTree:
        """What is cached where; takes milliseconds."""
