"""What a campaign found, as one object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from deploy.chaos.faults import Fault
from deploy.chaos.load import Outcome

MAX_DETAILS = 20


@dataclass(slots=True)
class Report:
    """One campaign. `ok` is the verdict."""

    transport: str = ""
    """What the pairs of workers moved pages by."""
    requests: int = 0
    wrong_tokens: int = 0
    """Requests with a token, text, end or log probability that is not the known one."""
    failed: int = 0
    hung: int = 0
    """No outcome a second after the deadline, or still at the router in the end."""
    leaked_pages: int = 0
    """Neither free nor cached when all requests were over."""
    refused: int = 0
    """Told to come back later: a clear answer to overload."""
    left: int = 0
    """Clients that went away in the middle."""
    retried: int = 0
    """Attempts that lost a leg and were made again, by the router's count."""
    retries: dict[str, int] = field(default_factory=dict)
    """By cause."""
    resumed: int = 0
    """Of those, calls that went on after tokens their client had already."""
    handoffs: int = 0
    handoff_failures: int = 0
    preempted: int = 0
    """Rows that gave up their pages to others: the pools were too small for the load."""
    restarts: int = 0
    verified_with_transformers: int = 0
    """Of the right answers, those that transformers' greedy search gives, too."""
    affected: dict[str, float] = field(default_factory=dict)
    """Requests that ran when a fault struck: how much longer they took than the median of the same ones in peace."""
    detection_s: dict[str, float] = field(default_factory=dict)
    struck: dict[str, int] = field(default_factory=dict)
    """Requests that ran when a fault struck, by stage."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """The first few things that went wrong, in words."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing went wrong, and something was tried."""
        bad = self.wrong_tokens + self.failed + self.hung + self.leaked_pages + len(self.errors)
        return not bad and self.requests > 0 and bool(self.faults)

    def as_json(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        return asdict(self) | {"ok": self.ok, "seconds": round(self.seconds, 1)}

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add what clients saw."""
        results = Counter(outcome.result for outcome in outcomes)
        self.requests += len(outcomes)
        self.wrong_tokens += results["wrong"]
        self.failed += results["failed"]
        self.hung += results["hung"]
        self.refused += results["refused"]
        self.left += results["left"]
        for outcome in outcomes:
            if outcome.result in ("wrong", "failed", "hung"):
                self.complain(f"{outcome.case.name} over {outcome.door} {outcome.result}: {outcome.detail}")
        self.affected = added_latency([outcome for outcome in outcomes if outcome.result == "right"])

    def add_faults(self, faults: Sequence[Fault], start_s: float) -> None:
        """Add what was done."""
        self.faults = [fault.as_json(start_s) for fault in faults]
        self.restarts = sum(fault.kind == "kill" for fault in faults)
        self.struck = dict(sum((Counter(fault.running) for fault in faults), Counter()))
        noticed = [fault.noticed_s for fault in faults if fault.noticed_s is not None]
        if noticed:
            self.detection_s = {"p50": round(median(noticed), 3), "max": round(max(noticed), 3)}

    def complain(self, message: str) -> None:
        """Something is wrong; only the first few are worth words."""
        if len(self.errors) < MAX_DETAILS:
            self.errors.append(message[:1000])


def added_latency(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds that struck requests took beyond the median of the same request through the same door in peace."""
    peace: dict[tuple[str, str], list[float]] = {}
    for outcome in outcomes:
        if not outcome.shaken:
            peace.setdefault((outcome.door, outcome.case.name), []).append(outcome.ended_s - outcome.started_s)
    added, waits = [], []
    for outcome in outcomes:
        alike = peace.get((outcome.door, outcome.case.name))
        if outcome.fault is not None and alike:
            added.append(outcome.ended_s - outcome.started_s - median(alike))
            waits.append(outcome.longest_wait_s)
    if not added:
        return {}
    added.sort()
    waits.sort()
    in_peace = sorted(outcome.longest_wait_s for outcome in outcomes if not outcome.shaken)
    return {
        "requests": len(added),
        "added_p50_s": round(_rank(added, 50), 3),
        "added_p99_s": round(_rank(added, 99), 3),
        "longest_wait_p50_s": round(_rank(waits, 50), 3),
        "longest_wait_p99_s": round(_rank(waits, 99), 3),
        "longest_wait_in_peace_p99_s": round(_rank(in_peace, 99), 3),
    }


def _rank(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
