"""What both doors read from a request's headers or metadata, and say in those of its answer."""

import math

from engine.core.errors import InvalidRequest
from router.api import Timing

SLO_HEADER = "x-baton-ttft-slo-ms"
"""A client's own objective: refuse the request at once when its first token is expected later."""


def slo_of(value: str | None) -> float | None:
    """Seconds. Raises InvalidRequest for what is no positive number."""
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise InvalidRequest(f"{SLO_HEADER} must be a positive number of milliseconds", param=SLO_HEADER)
    return milliseconds / 1000


def timing_entries(timing: Timing, *, whole: bool) -> tuple[tuple[str, str], ...]:
    """Names and milliseconds. The first four parts add up to ttft; what comes after it is known of a `whole` answer."""
    parts = {
        "queue": timing.queue_s,
        "admit": timing.admit_s,
        "prefill": timing.prefill_s,
        "deliver": timing.deliver_s,
        "ttft": timing.ttft_s,
    }
    if whole:
        parts |= {"transfer": timing.transfer_s, "first-step": timing.first_step_s}
    workers = (
        ("x-baton-prefill-worker", timing.prefill_worker),
        ("x-baton-decode-worker", timing.decode_worker),
    )
    return (*workers, *((f"x-baton-{part}-ms", f"{seconds * 1e3:.3f}") for part, seconds in parts.items()))
