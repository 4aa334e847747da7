"""What every routing policy answers, and what it is told."""

from dataclasses import dataclass, field
from typing import Protocol

from router.view import ClusterView

MAX_FAILED_PAIRS = 2
"""A call whose handoffs failed over so many pairs stays on one worker: each try may take as long as the watchdog of a
transfer waits, and when several links stand still at once a call would wait for each in turn.
"""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """One call as a policy sees it."""

    num_tokens: int
    """Prompt and what earlier attempts emitted: what must be computed or found."""
    max_new: int
    """Tokens that may still be drawn."""
    cached: dict[str, int]
    """Worker -> leading tokens that it holds, or will when it has done what it was sent; absent is 0."""
    avoid: frozenset[str] = frozenset()
    """Workers where this call failed before."""
    avoid_pairs: frozenset[tuple[str, str]] = frozenset()
    """(prefill, decode) whose handoff of this call failed before."""
    source: str | None = None
    """The worker that the pages must come from, though it gets no other work: only a pair with it will do."""
    model: str = ""
    """The hash of the model that drew its first tokens: another one must not go on with them. Empty: any."""

    @property
    def may_hand_over(self) -> bool:
        """Is a pair worth trying?"""
        return self.max_new > 1 and (self.source is not None or len(self.avoid_pairs) < MAX_FAILED_PAIRS)


@dataclass(frozen=True, slots=True)
class Predicted:
    """Expected milliseconds by part."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    transfer_ms: float = 0.0
    slowdown_ms: float = 0.0
    """What others lose, summed."""

    @property
    def total_ms(self) -> float:
        """The cost of the route."""
        return self.queue_ms + self.prefill_ms + self.transfer_ms + self.slowdown_ms


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Where a call goes. `prefill` None: `decode` runs the whole request."""

    prefill: str | None
    decode: str
    cached_tokens: int
    """Expected to be found where the prompt is computed."""
    predicted: Predicted = field(default_factory=Predicted)
    reason: str = ""

    @property
    def computes_prompt(self) -> str:
        """The worker that the first token comes from."""
        return self.prefill or self.decode


class Policy(Protocol):
    """Chooses workers. It may keep counters of its own, but owns nothing of the cluster."""

    name: str

    def choose(self, view: ClusterView, request: RouteRequest, now: float) -> RouteDecision | None:
        """A route that may be taken now, or None when no worker can take the call."""
