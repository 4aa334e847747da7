"""Moving averages of what requests took."""

import pytest

from router.recent import WEIGHT, RecentTimes, Timing


def test_the_first_value_is_the_average_and_later_ones_move_it() -> None:
    times = RecentTimes()
    times.on_end(Timing(queue_s=0.06, admit_s=0.04, prefill_s=0.2, ttft_s=0.3))
    assert (times.queue_s, times.prefill_s, times.ttft_s, times.requests) == (0.1, 0.2, 0.3, 1)
    times.on_end(Timing(prefill_s=0.2, transfer_s=0.5, ttft_s=0.2))
    assert times.queue_s == pytest.approx(0.1 * (1 - WEIGHT))
    assert times.transfer_s == 0.5, "of requests whose pages moved"
    for _ in range(200):
        times.on_gap(0.02)
    assert times.itl_s == pytest.approx(0.02)
