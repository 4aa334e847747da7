"""Recording and alerting rules, as Prometheus reads them. The metrics are those of router.metrics and
engine.server.metrics; targets are labelled as docs/operations.md says (job, router, worker, role).

Burning an error budget is judged over two windows at once: the long one says that it matters, the short one that it
still goes on. The factors are the ones that spend 2 % of a 30-day budget in an hour, 5 % in six hours, 10 % in three
days.
"""

from dataclasses import dataclass
from typing import Any

Rule = dict[str, Any]

RUNBOOK = "docs/operations.md"
WINDOWS = ("5m", "30m", "1h", "6h", "3d")


@dataclass(frozen=True, slots=True)
class Objectives:
    """What the service promises; a change here changes the rules."""

    answered: float = 0.999
    """Share of requests that end well or by the client's own will."""
    in_time: float = 0.99
    """Share of first tokens within `ttft_s`."""
    ttft_s: float = 0.5
    """One of the bounds of baton_router_ttft_seconds."""
    transfer_floor_bytes_per_s: float = 1e9
    """A pair that proved itself slower than this hurts TTFT: RDMA and NVLink are well above."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Its name is the heading of its entry in the runbook."""

    name: str
    expr: str
    hold: str
    """How long `expr` must hold."""
    severity: str
    """page: somebody must act now; ticket: within days."""
    summary: str


def groups(objectives: Objectives = Objectives()) -> list[Rule]:
    """Everything that rules.yaml holds."""
    return [
        {"name": "baton-slo-records", "rules": list(_records(objectives))},
        {"name": "baton-slo", "rules": [_alert(each) for each in _burns(objectives)]},
        {"name": "baton", "rules": [_alert(each) for each in (*_SERVICE, *_pages(objectives))]},
    ]


def alerts(objectives: Objectives = Objectives()) -> tuple[Alert, ...]:
    """Every alert."""
    return (*_burns(objectives), *_SERVICE, *_pages(objectives))


_NOT_OURS = "finished|cancelled|invalid_argument|not_found|unauthenticated"


def _records(objectives: Objectives) -> list[Rule]:
    rules = []
    for window in WINDOWS:
        asked = f"sum(rate(baton_router_requests_total[{window}]))"
        failed = f'sum(rate(baton_router_requests_total{{outcome!~"{_NOT_OURS}"}}[{window}])) or vector(0)'
        first = f"sum(rate(baton_router_ttft_seconds_count[{window}]))"
        soon = f'sum(rate(baton_router_ttft_seconds_bucket{{le="{objectives.ttft_s:g}"}}[{window}]))'
        rules += [
            {"record": f"baton:requests_failed:ratio_rate{window}", "expr": f"({failed}) / ({asked} > 0)"},
            {"record": f"baton:ttft_late:ratio_rate{window}", "expr": f"1 - {soon} / ({first} > 0)"},
        ]
    return rules


def _burns(objectives: Objectives) -> list[Alert]:
    found = []
    for kind, ratio, budget, what in (
        ("Errors", "baton:requests_failed:ratio_rate", 1 - objectives.answered, "requests fail"),
        (
            "Ttft",
            "baton:ttft_late:ratio_rate",
            1 - objectives.in_time,
            f"first tokens take over {objectives.ttft_s:g} s",
        ),
    ):
        for speed, severity, pairs in (
            ("Fast", "page", ((14.4, "1h", "5m"), (6.0, "6h", "30m"))),
            ("Slow", "ticket", ((1.0, "3d", "6h"),)),
        ):
            sides = [
                f"({ratio}{long} > {factor * budget:.5g} and {ratio}{short} > {factor * budget:.5g})"
                for factor, long, short in pairs
            ]
            summary = f"{{{{ $value | humanizePercentage }}}} of {what}: the budget is spent too fast"
            found.append(Alert(f"Baton{kind}Burn{speed}", " or ".join(sides), "2m", severity, summary))
    return found


_SERVICE = (
    Alert(
        "BatonRouterDown",
        'up{job="baton-router"} == 0',
        "1m",
        "page",
        "router {{ $labels.router }} does not answer",
    ),
    Alert(
        "BatonWorkerDown",
        'up{job="baton-worker"} == 0',
        "1m",
        "ticket",
        "worker {{ $labels.worker }} does not answer",
    ),
    Alert(
        "BatonNoWorkerReady",
        "sum by (router) (baton_router_worker_ready) == 0 or "
        '(up{job="baton-router"} == 1 unless on (router) baton_router_worker_ready)',
        "30s",
        "page",
        "router {{ $labels.router }} has no worker that may get work",
    ),
    Alert(
        "BatonBreakerOpen",
        "max by (worker) (baton_router_worker_breaker_open) == 1 or "
        "max by (source, target) (baton_router_pair_breaker_open) == 1",
        "1m",
        "ticket",
        "work keeps failing at {{ $labels.worker }}{{ $labels.source }} {{ $labels.target }}",
    ),
    Alert(
        "BatonIndexStale",
        "min by (router, worker) (baton_router_worker_index_synced) == 0",
        "1m",
        "ticket",
        "router {{ $labels.router }} does not know what {{ $labels.worker }} has cached",
    ),
    Alert(
        "BatonQueueGrows",
        "sum(baton_router_queued_requests) > 0 and sum(deriv(baton_router_queued_requests[5m])) > 0",
        "5m",
        "page",
        "{{ $value }} requests wait for a place at the routers, more and more",
    ),
    Alert(
        "BatonDrainStuck",
        "baton_worker_draining == 1",
        "15m",
        "ticket",
        "worker {{ $labels.worker }} wants to leave and does not get empty",
    ),
)


def _pages(objectives: Objectives) -> list[Alert]:
    """Of pages and their ways."""
    floor = objectives.transfer_floor_bytes_per_s
    return [
        Alert(
            "BatonPagesLeaked",
            "increase(baton_page_conservation_failures_total[15m]) > 0",
            "0m",
            "page",
            "worker {{ $labels.worker }} found pages missing from its ledger, or held for nobody",
        ),
        Alert(
            "BatonPagesQuarantinedLong",
            'baton_worker_page_oldest_seconds{state=~"reserved|filling|quarantined"} > 60',
            "1m",
            "ticket",
            "pages of {{ $labels.worker }} have been {{ $labels.state }} for {{ $value | humanizeDuration }}",
        ),
        Alert(
            "BatonPairNotProven",
            "baton_worker_peer_ready == 0",
            "2m",
            "ticket",
            "{{ $labels.worker }} cannot pull pages from {{ $labels.peer }}",
        ),
        Alert(
            "BatonTransferBelowFloor",
            f"baton_worker_peer_bytes_per_second < {floor:g} and baton_worker_peer_ready == 1",
            "1m",
            "ticket",
            "{{ $labels.worker }} pulls from {{ $labels.peer }} at {{ $value | humanize }}B/s only",
        ),
        Alert(
            "BatonHandoffsFail",
            "sum(rate(baton_router_handoff_failures_total[5m])) > 0.05 * sum(rate(baton_router_handoffs_total[5m]))",
            "5m",
            "ticket",
            "more than one handoff in twenty ends without proven pages",
        ),
        Alert(
            "BatonPreemption",
            "rate(baton_worker_preempted_total[5m]) > 0.1",
            "10m",
            "ticket",
            "{{ $labels.worker }} computes requests again because its pages do not suffice",
        ),
    ]


def _alert(alert: Alert) -> Rule:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.hold,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOK}#{alert.name.lower()}"},
    }
