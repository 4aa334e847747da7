"""Numbers of a load test from hand-made request times."""

import pytest

from bench.report import RequestResult, Slo, percentile, summarize


def done(planned_s: float, first_s: float, last_s: float, output_tokens: int) -> RequestResult:
    return RequestResult(
        planned_s=planned_s,
        sent_s=planned_s + 0.001,
        first_s=first_s,
        last_s=last_s,
        gaps_s=[last_s - first_s],
        input_tokens=10,
        output_tokens=output_tokens,
        cached_tokens=5,
    )


def test_percentile_interpolates() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([0.0, 10.0], 90) == pytest.approx(9.0)
    assert percentile([7.0], 99) == 7.0


def test_ttft_counts_from_the_planned_time() -> None:
    result = RequestResult(planned_s=1.0, sent_s=1.5, first_s=1.6)
    assert result.ttft_s == pytest.approx(0.6)


def test_tpot_is_undefined_for_one_token() -> None:
    assert done(0, 1, 1, output_tokens=1).tpot_s is None
    assert done(0, 1, 3, output_tokens=5).tpot_s == pytest.approx(0.5)


def test_errors_count_against_goodput_and_throughput() -> None:
    results = [done(0.0, 0.1, 1.0, 10), RequestResult(planned_s=0.5, sent_s=0.5, error="HTTP 503")]
    report = summarize(results, Slo(ttft_s=0.2, tpot_s=0.2))
    assert report["completed"] == 1
    assert report["failed"] == 1
    assert report["errors"] == {"HTTP 503": 1}
    assert report["goodput_share"] == 0.5
    assert report["output_tokens_per_s"] == 10.0
    assert report["cached_share"] == 0.5


@pytest.mark.parametrize(("ttft_s", "tpot_s", "good"), [(0.2, 0.2, True), (0.05, 0.2, False), (0.2, 0.05, False)])
def test_slo_needs_both(ttft_s: float, tpot_s: float, good: bool) -> None:
    assert Slo(ttft_s, tpot_s).met_by(done(0.0, 0.1, 1.0, 10)) is good


def test_all_failed_is_still_a_report() -> None:
    report = summarize([RequestResult(planned_s=0.0, error="timeout")], Slo(1, 1))
    assert report["goodput_share"] == 0
    assert report["ttft_ms"] == {}
