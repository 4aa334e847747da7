"""From the times of single requests to percentiles, throughput and goodput."""

from collections.abc import Sequence
from dataclasses import dataclass, field

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class RequestResult:
    """What the client saw of one request. All times in seconds on the client's clock; filled while it runs."""

    planned_s: float
    """When it was due. Waits before sending count into TTFT, so a slow client cannot hide a slow server."""
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """Between neighbouring chunks of the stream."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    """Why it failed. A refusal (429, 503) is a failure too."""

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first token."""
        return None if self.first_s is None else self.first_s - self.planned_s

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (n - 1) tokens."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good."""

    ttft_s: float
    tpot_s: float

    def met_by(self, result: RequestResult) -> bool:
        """Failed requests never meet it; a one-token answer has no TPOT to miss."""
        if result.error is not None or result.ttft_s is None:
            return False
        return result.ttft_s <= self.ttft_s and (result.tpot_s or 0.0) <= self.tpot_s


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two nearest ranks. `values` must not be empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def distribution_ms(values_s: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles and maximum in milliseconds; empty when there are no values."""
    if not values_s:
        return {}
    summary = {"mean": sum(values_s) / len(values_s)}
    summary |= {f"p{percent}": percentile(values_s, percent) for percent in PERCENTILES}
    summary["max"] = max(values_s)
    return {name: round(value * 1000, 3) for name, value in summary.items()}


def summarize(results: Sequence[RequestResult], slo: Slo) -> dict[str, object]:
    """One JSON object for the whole run. `results` must not be empty."""
    done = [result for result in results if result.error is None]
    ends = [result.last_s for result in results if result.last_s is not None]
    duration_s = max(ends, default=0.0) - min(result.planned_s for result in results)
    good = sum(slo.met_by(result) for result in results)
    errors: dict[str, int] = {}
    for result in results:
        if result.error is not None:
            errors[result.error] = errors.get(result.error, 0) + 1
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    input_tokens = sum(result.input_tokens for result in done)
    return {
        "requests": len(results),
        "completed": len(done),
        "failed": len(results) - len(done),
        "errors": errors,
        "duration_s": round(duration_s, 3),
        "requests_per_s": round(len(done) * per_s, 3),
        "input_tokens_per_s": round(input_tokens * per_s, 1),
        "output_tokens_per_s": round(sum(result.output_tokens for result in done) * per_s, 1),
        "cached_share": round(sum(result.cached_tokens for result in done) / input_tokens, 4) if input_tokens else 0.0,
        "ttft_ms": distribution_ms([result.ttft_s for result in done if result.ttft_s is not None]),
        "itl_ms": distribution_ms([gap for result in done for gap in result.gaps_s]),
        # Between two workers the first gap holds the handoff of the pages.
        "first_gap_ms": distribution_ms([result.gaps_s[0] for result in done if result.gaps_s]),
        "later_gaps_ms": distribution_ms([gap for result in done for gap in result.gaps_s[1:]]),
        "tpot_ms": distribution_ms([result.tpot_s for result in done if result.tpot_s is not None]),
        "client_lag_ms": distribution_ms([result.sent_s - result.planned_s for result in results if result.sent_s]),
        "slo": {"ttft_ms": slo.ttft_s * 1000, "tpot_ms": slo.tpot_s * 1000},
        "goodput_share": round(good / len(results), 4),
        "goodput_requests_per_s": round(good * per_s, 3),
    }
