"""What the HTTP and gRPC doors need from the router behind them. Pure values and one protocol."""

from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from engine.core.types import FinishReason, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One sequence to generate. A client request with n > 1 or several prompts is several calls."""

    request_id: str
    tokens: "array[int]"
    sampling: Sampling
    timeout_s: float
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time to the first token went, seconds; and who did it."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    transfer_s: float = 0.0
    ttft_s: float = 0.0
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
    """On the last delta."""


class Generator(Protocol):
    """The router as its doors see it."""

    def generate(self, call: GenerateCall) -> AsyncIterator[Delta]:
        """Stream one call. Raises BatonError (deadline, overload, no worker). Closing the iterator cancels."""
