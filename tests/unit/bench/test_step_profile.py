"""What a profile says of spans on a device."""

from bench.step_profile import summarize_spans


def test_overlaps_count_once_and_pauses_are_seen() -> None:
    spans = [("product", 0.0, 10.0), ("norm", 8.0, 12.0), ("product", 20.0, 40.0)]
    found = summarize_spans("some", spans, top=1)
    assert found.span_ms == 0.04
    assert found.busy_share == 32 / 40
    assert found.longest_pause_us == 8.0 and found.pause_between == ("norm", "product")
    assert [(kernel.name, kernel.count, kernel.total_us) for kernel in found.kernels] == [("product", 2, 30.0)]
