"""What a campaign found, as one object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from deploy.chaos.load import Outcome
from deploy.chaos.status import Fault

MAX_DETAILS = 20
COUNTS = {
    "requests": "Sent while workers broke.",
    "wrong_tokens": "Requests with a token, text, end or log probability that is not the known one.",
    "failed": "Requests that ended with another error than a clear refusal.",
    "hung": "No outcome a second after the deadline, or still at the router in the end.",
    "leaked_pages": "Neither free nor cached when all requests were over.",
    "refused": "Told to come back later: a clear answer to overload.",
    "left": "Clients that went away in the middle.",
    "retried": "Attempts that lost a leg and were made again, by the router's count.",
    "resumed": "Of those, requests that went on after tokens their client had already.",
    "handoffs": "Prompts that moved.",
    "handoff_failures": "Handoffs that did not end with proven pages while both workers were thought well.",
    "preempted": "Rows that gave their pages to others: the pools are too small for the load.",
    "restarts": "Worker processes that were killed and came back.",
    "verified_with_transformers": "Right answers that transformers' greedy search gives, too.",
}
CLIENT_ENDS = ("failed", "hung", "refused", "left")
BAD = ("wrong_tokens", "failed", "hung", "leaked_pages")


@dataclass(slots=True)
class Report:
    """One campaign. `ok` is the verdict."""

    counts: Counter[str] = field(default_factory=Counter)
    """By the names of COUNTS."""
    transport: str = ""
    """What the pairs of workers moved pages by."""
    retries: Counter[str] = field(default_factory=Counter)
    """By cause."""
    affected: dict[str, float] = field(default_factory=dict)
    """Requests that ran when a fault struck: how much longer they took than the median of the same ones in peace."""
    detection_s: dict[str, float] = field(default_factory=dict)
    """From the stroke, or from the first read that met a stall, until the router's status said so."""
    struck: dict[str, int] = field(default_factory=dict)
    """Requests that ran when a fault struck, by stage."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    stalled_link: dict[str, Any] = field(default_factory=dict)
    """Of the part without Ray, where the link between the workers stood still."""
    continued: dict[str, int] = field(default_factory=dict)
    """By kind of request and door: tokens (or parts) that came after the only decode worker was killed."""
    errors: list[str] = field(default_factory=list)
    """The first few things that went wrong, in words."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing went wrong, and something was tried."""
        bad = len(self.errors) + sum(self.counts[name] for name in BAD)
        return not bad and self.counts["requests"] > 0 and bool(self.faults)

    def as_json(self) -> dict[str, Any]:
        """Ready for json.dumps: the counts, then the rest."""
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "counts"}
        return {name: self.counts[name] for name in COUNTS} | rest | {"seconds": round(self.seconds, 1), "ok": self.ok}

    def add(self, other: "Report") -> None:
        """The part over a stalling link: its counts are added, what cannot be added is under `stalled_link`."""
        verified = max(report.counts.pop("verified_with_transformers", 0) for report in (self, other))
        self.stalled_link = other.as_json()
        self.counts += other.counts
        self.counts["verified_with_transformers"] = verified
        self.retries += other.retries
        for message in other.errors:
            self.complain(f"stalled link: {message}")

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add what clients saw."""
        self.counts["requests"] += len(outcomes)
        results = Counter(outcome.result for outcome in outcomes)
        self.counts["wrong_tokens"] += results["wrong"]
        for result in CLIENT_ENDS:
            self.counts[result] += results[result]
        for outcome in outcomes:
            if outcome.result in ("wrong", "failed", "hung"):
                self.complain(f"{outcome.case.name} over {outcome.door} {outcome.result}: {outcome.detail}")
        self.affected = added_latency([outcome for outcome in outcomes if outcome.result == "right"])

    def add_faults(self, faults: Sequence[Fault], start_s: float) -> None:
        """Add what was done."""
        self.faults = [fault.as_json(start_s) for fault in faults]
        self.counts["restarts"] += sum(fault.kind == "kill" for fault in faults)
        self.struck = dict(sum((Counter(fault.running) for fault in faults), Counter()))
        noticed = [fault.noticed_s - fault.felt_s for fault in faults if fault.noticed_s is not None]
        if noticed:
            self.detection_s = {"p50": round(median(noticed), 3), "max": round(max(noticed), 3)}

    def complain(self, message: str) -> None:
        """Something is wrong; only the first few are worth words."""
        if len(self.errors) < MAX_DETAILS:
            self.errors.append(message[:1000])


def added_latency(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds that struck requests took beyond the median of the same request in peace."""
    peace: dict[str, list[float]] = {}
    for outcome in outcomes:
        if not outcome.shaken:
            peace.setdefault(outcome.case.name, []).append(outcome.ended_s - outcome.started_s)
    added, waits = [], []
    for outcome in outcomes:
        alike = peace.get(outcome.case.name)
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
