"""Workers of a real service are stopped and killed under load: right tokens, no request and no page lost."""

import pytest

from deploy.chaos import CampaignConfig, campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("transport", ["nixl", "grpc"])
def test_stopped_and_killed_workers_cost_nobody_an_answer(transport: str) -> None:
    report = campaign(CampaignConfig(seconds=5.0, transport=transport, num_clients=6))
    done = {(fault["kind"], fault["worker"].partition("-")[0]) for fault in report.faults}
    assert done == {(kind, role) for kind in ("stop", "kill") for role in ("prefill", "decode")}, report
    bad = (report.wrong_tokens, report.failed, report.hung, report.leaked_pages)
    assert bad == (0, 0, 0, 0), report.errors
    assert report.ok, report.errors
    assert report.transport == transport
    assert report.requests > 50 and report.handoffs > 50
    assert report.verified_with_transformers > 10
    assert report.retried > 0, "no fault struck a request"
