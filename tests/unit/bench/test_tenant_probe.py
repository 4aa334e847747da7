"""The probe's statistics: it sees a difference that is there, and none that is not."""

import random

from bench.tenant_probe import Round, summarize


def test_a_cache_that_is_shared_would_be_seen_and_one_that_is_not_is_not() -> None:
    rng = random.Random(1)

    def cold() -> float:
        return rng.gauss(20.0, 3.0)

    def warm() -> float:
        return rng.gauss(15.0, 3.0)

    apart = summarize([Round(cold(), cold(), warm()) for _ in range(100)], rng)
    shared = summarize([Round(warm(), cold(), warm()) for _ in range(100)], rng)
    assert apart["p"] > 0.05 and abs(apart["auc"] - 0.5) < 0.15
    assert shared["p"] < 0.001 and shared["auc"] > 0.75
    assert apart["own_p"] < 0.001 and apart["own_auc"] > 0.75


def test_equal_times_are_no_difference() -> None:
    result = summarize([Round(1.0, 1.0, 1.0)] * 10, random.Random(0))
    assert result["auc"] == 0.5 and result["p"] == 1.0
