"""What requests took: each one, and recent ones as moving averages for people who look."""

from dataclasses import dataclass

WEIGHT = 0.1
"""Of the newest value."""


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
    """The rest of the gap between first and second token: the ticket's way, decode's admission and its step."""
    prefill_worker: str = ""
    decode_worker: str = ""


@dataclass(slots=True)
class RecentTimes:
    """Seconds. Mutable; whoever measures feeds it."""

    requests: int = 0
    """That have ended well."""
    ttft_s: float = 0.0
    queue_s: float = 0.0
    """Part of TTFT: waiting, at the router and at the worker."""
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
        self.itl_s = _moved(self.itl_s, seconds) if self.itl_s else seconds

    def on_end(self, timing: Timing) -> None:
        """TTFT of one request and its parts, all at its end, so that they are of the same requests."""
        first = not self.requests
        self.requests += 1
        self.ttft_s = timing.ttft_s if first else _moved(self.ttft_s, timing.ttft_s)
        waited_s = timing.queue_s + timing.admit_s
        self.queue_s = waited_s if first else _moved(self.queue_s, waited_s)
        self.prefill_s = timing.prefill_s if first else _moved(self.prefill_s, timing.prefill_s)
        if timing.transfer_s:
            self.transfer_s = _moved(self.transfer_s, timing.transfer_s) if self.transfer_s else timing.transfer_s


def _moved(average: float, value: float) -> float:
    return average + WEIGHT * (value - average)
