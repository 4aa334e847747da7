"""Policies on a trace in virtual time: the production router core and workers, timed like H200s with an 8B model.

For each number of workers and each load (requests a second for each pair of one prefill and one decode worker) the same
slice of the trace, its time stretched to that rate, is played once with each policy, and for the policy named first
once more with an oracle in the place of the index. Failures count against goodput.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.report import distribution_ms, percentile
from bench.router_cluster import Cluster
from bench.router_trace import TraceRequest, at_rate, ceiling_hit_rate
from engine.core.types import Sampling
from router.api import GenerateCall
from router.events import CallArrived, Emit, Fail

TIMEOUT_S = 120.0
SLICE_S = 0.5
"""Between two looks whether everything is over."""
JOIN_S = 1.0
"""Workers join and pairs prove themselves before the first request."""
SLO_TTFT_S = 2.0
"""A prompt of the trace's mean length takes 0.33 s alone."""
SLO_TPOT_S = 0.05


@dataclass(slots=True)
class Seen:
    """What one client saw. Mutable."""

    request: TraceRequest
    sent_s: float
    predicted_ms: float | None = None
    """To the first token, by the policy, when the route was chosen."""
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    cached: int = 0
    failed: bool = False

    @property
    def ttft_s(self) -> float:
        """Of one that got a token."""
        assert self.first_s is not None
        return self.first_s - self.sent_s

    @property
    def good(self) -> bool:
        """It ended well and within the SLO."""
        if self.failed or self.first_s is None or self.tokens < self.request.num_new:
            return False
        gaps = max(self.tokens - 1, 1)
        return self.ttft_s <= SLO_TTFT_S and (self.last_s - self.first_s) / gaps <= SLO_TPOT_S


@dataclass(frozen=True, slots=True)
class Level:
    """One cell of the comparison."""

    num_workers: int
    rate_per_pair: float
    """Requests a second for each prefill worker with its decode worker."""

    @property
    def requests_per_s(self) -> float:
        """Of the whole cluster."""
        return self.rate_per_pair * self.num_workers / 2


@dataclass(slots=True)
class Play:
    """One policy on one level."""

    cluster: Cluster
    seen: dict[int, Seen] = field(default_factory=dict)
    num_open: int = 0

    def run(self, requests: Sequence[TraceRequest]) -> list[Seen]:
        """All requests, each at its time, until the last one is over."""
        cluster, clock = self.cluster, self.cluster.clock
        cluster.ports.emit, cluster.ports.fail = self._emit, self._fail
        clock.run(JOIN_S)
        self.num_open = len(requests)
        for key, request in enumerate(requests, 1):
            clock.at(JOIN_S + request.arrival_s, lambda key=key, request=request: self._send(key, request))  # type: ignore[misc]
        until_s = JOIN_S + requests[-1].arrival_s + 2 * TIMEOUT_S
        while self.num_open:
            assert clock.now < until_s, f"{self.num_open} calls have no outcome long after their deadline"
            clock.run(clock.now + SLICE_S)
        return list(self.seen.values())

    def _send(self, key: int, request: TraceRequest) -> None:
        seen = self.seen[key] = Seen(request, self.cluster.clock.now)
        sampling = Sampling(max_tokens=request.num_new, temperature=0.0)
        self.cluster.handle(CallArrived(key, GenerateCall(str(key), request.tokens(), sampling, TIMEOUT_S)))
        flow = self.cluster.router.calls.flows.get(key)
        if flow is not None and flow.attempt is not None and flow.attempt.decision.predicted.total_ms:
            predicted = flow.attempt.decision.predicted
            seen.predicted_ms = predicted.queue_ms + predicted.prefill_ms

    def _emit(self, effect: Emit) -> None:
        seen, now, delta = self.seen[effect.key], self.cluster.clock.now, effect.delta
        if seen.first_s is None:
            seen.first_s, seen.cached = now, delta.cached_tokens or 0
        seen.last_s = now
        seen.tokens += len(delta.tokens)
        self.num_open -= delta.finish_reason is not None

    def _fail(self, effect: Fail) -> None:
        self.seen[effect.key].failed = True
        self.num_open -= 1


def play(
    level: Level, policy: str, requests: Sequence[TraceRequest], seed: int, oracle: bool = False
) -> dict[str, Any]:
    """One row: what clients saw and what the workers did."""
    begin = time.process_time()
    cluster = Cluster(level.num_workers, policy, seed, oracle)
    seen = Play(cluster).run(at_rate(requests, level.requests_per_s))
    answered = [each for each in seen if each.first_s is not None]
    found = sum(each.cached for each in answered) / sum(each.request.num_tokens for each in answered)
    tpots = [(each.last_s - each.first_s) / (each.tokens - 1) for each in answered if each.tokens > 1 and each.first_s]
    stats = cluster.router.stats
    return {
        "policy": policy + ("+oracle" if oracle else ""),
        "ttft_ms": distribution_ms([each.ttft_s for each in answered]),
        "tpot_p50_ms": round(percentile(tpots, 50) * 1e3, 2),
        "tpot_p99_ms": round(percentile(tpots, 99) * 1e3, 2),
        "hit_rate": round(found, 4),
        "goodput": round(sum(each.good for each in seen) / len(seen), 4),
        "failed": sum(each.failed for each in seen),
        "imbalance": imbalance(cluster),
        "pairs": stats.routes["pair"],
        "whole": stats.routes["whole"],
        "retries": dict(stats.retries),
        "prediction": prediction_error(answered),
        "cpu_s": round(time.process_time() - begin, 1),
    }


def imbalance(cluster: Cluster) -> dict[str, float]:
    """Busy seconds of the busiest worker of each role over the mean of its role; 1 is even."""
    row = {}
    for role in ("prefill", "decode"):
        busy = [each.executor.busy for each in cluster.workers if role in each.info.roles]
        seconds = [each.prefill_s + each.decode_s for each in busy]
        row[role] = round(max(seconds) * len(seconds) / sum(seconds), 3) if sum(seconds) else 1.0
    return row


def prediction_error(seen: Sequence[Seen]) -> dict[str, float]:
    """Predicted against actual milliseconds to the first token; empty for policies that predict nothing."""
    pairs = [(each.predicted_ms, each.ttft_s * 1e3) for each in seen if each.predicted_ms is not None]
    if not pairs:
        return {}
    relative = [abs(predicted - actual) / actual for predicted, actual in pairs]
    return {
        "median_relative": round(percentile(relative, 50), 3),
        "p90_relative": round(percentile(relative, 90), 3),
        "mean_error_ms": round(sum(predicted - actual for predicted, actual in pairs) / len(pairs), 1),
        "mean_absolute_ms": round(sum(abs(predicted - actual) for predicted, actual in pairs) / len(pairs), 1),
    }


def compare(
    requests: Sequence[TraceRequest], levels: Sequence[Level], policies: Sequence[str], seed: int
) -> dict[str, Any]:
    """The whole part. The first policy is the one that the oracle is for."""
    cells: list[dict[str, Any]] = []
    for level in levels:
        rows = [play(level, policy, requests, seed) for policy in policies]
        oracle = play(level, policies[0], requests, seed, oracle=True)
        share = rows[0]["hit_rate"] / oracle["hit_rate"] if oracle["hit_rate"] else 1.0
        cells.append(
            {
                "workers": level.num_workers,
                "rate_per_pair": level.rate_per_pair,
                "hit_rate_vs_oracle": round(share, 4),
                "behind": behind(rows),
                "rows": [*rows, oracle],
            }
        )
    worst = min(cells, key=lambda cell: cell["hit_rate_vs_oracle"])
    return {
        "requests": len(requests),
        "ceiling_hit_rate": round(ceiling_hit_rate(requests), 4),
        "slo": {"ttft_s": SLO_TTFT_S, "tpot_s": SLO_TPOT_S},
        "hit_rate": worst["rows"][0]["hit_rate"],
        "oracle_hit_rate": worst["rows"][-1]["hit_rate"],
        "hit_rate_vs_oracle": worst["hit_rate_vs_oracle"],
        "cells": cells,
    }


def behind(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where another policy beats the first one: in mean, p90 or p99 of TTFT or in goodput."""
    ours, words = rows[0], []
    for row in rows[1:]:
        for name in ("mean", "p90", "p99"):
            if row["ttft_ms"][name] < ours["ttft_ms"][name]:
                words.append(
                    f"{row['policy']}: TTFT {name} {row['ttft_ms'][name]:.0f} < {ours['ttft_ms'][name]:.0f} ms"
                )
        if row["goodput"] > ours["goodput"]:
            words.append(f"{row['policy']}: goodput {row['goodput']} > {ours['goodput']}")
    return words


def lines(report: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"policies: {report['requests']} requests, ceiling of the hit rate {report['ceiling_hit_rate']}"
    for cell in report["cells"]:
        yield f"  {cell['workers']} workers, {cell['rate_per_pair']}/s a pair, vs oracle {cell['hit_rate_vs_oracle']}"
        for row in cell["rows"]:
            ttft = "  ".join(f"{name} {row['ttft_ms'][name]:.0f}" for name in ("mean", "p90", "p99"))
            rest = {name: value for name, value in row.items() if name not in ("policy", "ttft_ms") and value}
            yield f"    {row['policy']:22} TTFT {ttft}  {rest}"
        for word in cell["behind"]:
            yield f"    behind {word}"
