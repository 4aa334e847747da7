"""When a call that nobody can take is tried again."""

import itertools
import random
from array import array

import pytest

from engine.core.errors import DeadlineExceeded
from engine.core.types import Sampling
from router.api import GenerateCall
from router.config import RouterConfig
from router.core import RouterCore
from router.events import CallArrived, Effect, Fail, Tick
from router.policies.registry import make_policy

DEADLINE_S = 4.0


def times_of_tries(seed: int) -> list[float]:
    """Of one call without any worker, until its deadline."""
    core = RouterCore(RouterConfig(), random.Random(seed), lambda model, rng: make_policy("cost", model, rng))
    effects: list[Effect] = core.handle(
        CallArrived(1, GenerateCall("c", array("i", [1, 2]), Sampling(max_tokens=5), DEADLINE_S)), 0.0
    )
    flow = core.calls.flows[1]
    times, tries, now = [0.0], 1, 0.0
    while not effects:
        now += 0.001
        effects = core.handle(Tick(), now)
        if flow.trouble.failures_in_row > tries:
            tries = flow.trouble.failures_in_row
            times.append(now)
    (end,) = effects
    assert isinstance(end, Fail) and isinstance(end.error, DeadlineExceeded)
    assert now == pytest.approx(DEADLINE_S, abs=0.002)
    return times


def test_tries_come_ever_more_rarely_by_chance_and_end_with_the_deadline() -> None:
    times = times_of_tries(3)
    for number, (before, after) in enumerate(itertools.pairwise(times)):
        full_s = min(0.02 * 2.0**number, 1.0)
        assert full_s / 2 - 0.002 <= after - before <= full_s + 0.002
    assert len(times) >= 8 and times != times_of_tries(4), "calls that failed together come back apart"
