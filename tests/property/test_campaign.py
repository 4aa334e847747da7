"""The virtual-time campaign finds nothing wrong; the same seed gives the same run; and it would find planted bugs."""

from random import Random

import pytest

from baton.virtual import play_chunk
from simulator.campaign import run_seed


def test_a_few_seeds_find_nothing_wrong_and_do_what_they_are_for() -> None:
    report, failures = play_chunk(range(25))
    assert not failures
    assert report.requests > 250 and report.handoffs > 80
    assert report.retried and report.resumed and report.preempted and report.refusals


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_two_thousand_seeds_find_nothing_wrong(block: int) -> None:
    _, failures = play_chunk(range(1000 + 200 * block, 1200 + 200 * block))
    assert not failures


def test_a_seed_replays_exactly() -> None:
    first, again, other = run_seed(3, Random(3)), run_seed(3, Random(3)), run_seed(4, Random(4))
    assert first == again
    assert first.trace != other.trace
