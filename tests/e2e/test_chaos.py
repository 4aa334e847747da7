"""Workers of a real service are stopped and killed under load: right tokens, no request and no page lost.

The campaign goes on until its faults have struck requests and handoffs, so nothing here depends on luck.
"""

import pytest

from deploy.chaos import CampaignConfig, campaign
from deploy.chaos.cases import make_kinds

pytestmark = [pytest.mark.slow(seconds=80), pytest.mark.timeout(400)]


def test_what_breaks_costs_nobody_an_answer() -> None:
    """Workers are stopped and killed; a link between two of them, which gRPC makes, stands still; the only decode
    worker is killed while every kind of request decodes there.
    """
    report = campaign(CampaignConfig(seconds=5.0, transport="nixl", num_clients=6, stall_s=5.0))
    assert report.ok, report
    done = {(fault["kind"], fault["worker"].partition("-")[0]) for fault in report.faults}
    assert done == {(kind, role) for kind in ("stop", "kill") for role in ("prefill", "decode")}
    counts = report.counts
    assert [counts[name] for name in ("wrong_tokens", "failed", "hung", "leaked_pages")] == [0] * 4
    assert report.transport == "nixl"
    assert counts["requests"] > 30 and counts["handoffs"] > 30 and counts["verified_with_transformers"] > 10
    assert counts["retried"] > 0, "no fault struck a request"
    assert report.stalled_link["handoff_failures"] > 0, "no stall struck a handoff"
    kinds = {case.name for case in make_kinds(vocab_size=4096)}
    assert {"seeded", "penalties", "stop string", "logprobs", "two answers"} == kinds
    assert report.continued.keys() == {f"{kind} over {door}" for kind in kinds for door in ("grpc", "http")}
    assert min(report.continued.values()) > 0, "nothing came after the kill"
