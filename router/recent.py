"""What recent requests took, as moving averages: for people who look, not for decisions."""

from dataclasses import dataclass

WEIGHT = 0.1
"""Of the newest value."""


@dataclass(slots=True)
class RecentTimes:
    """Seconds. Mutable; whoever measures feeds it."""

    requests: int = 0
    """That got their first token."""
    ttft_s: float = 0.0
    queue_s: float = 0.0
    """Part of TTFT: waiting."""
    prefill_s: float = 0.0
    """Part of TTFT: computing the prompt."""
    transfer_s: float = 0.0
    """Pages on their way, behind the first token; of requests whose pages moved."""
    tokens: int = 0
    """Given to clients since the start."""
    itl_s: float = 0.0
    """Between tokens; 0 before the first gap."""

    def on_gap(self, seconds: float) -> None:
        """Two tokens of one answer came that far apart."""
        self.itl_s = _moved(self.itl_s, seconds)

    def on_first_token(self, ttft_s: float) -> None:
        """Of one request."""
        self.requests += 1
        self.ttft_s = _moved(self.ttft_s, ttft_s) if self.requests > 1 else ttft_s

    def on_end(self, queue_s: float, prefill_s: float, transfer_s: float) -> None:
        """The parts of one request's TTFT, told at its end."""
        self.queue_s = _moved(self.queue_s, queue_s)
        self.prefill_s = _moved(self.prefill_s, prefill_s)
        if transfer_s:
            self.transfer_s = _moved(self.transfer_s, transfer_s)


def _moved(average: float, value: float) -> float:
    return average + WEIGHT * (value - average) if average else value
