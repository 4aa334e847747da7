"""Frozen settings of the pure core. Each part gets only its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step and of one worker's queue."""

    page_size: int
    num_pages: int
    max_model_len: int
    """Tokens of prompt and output together."""
    max_step_tokens: int = 2048
    """Tokens that one step computes at most: the chunk size of chunked prefill."""
    max_rows: int = 256
    """Requests in one step at most."""
    max_in_flight: int = 2
    """Steps launched and not yet committed: 2 overlaps planning with the device, 1 is synchronous."""
    max_queued: int = 4096
    """Requests that wait at most; one more is refused."""
