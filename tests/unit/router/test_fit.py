from random import Random

import pytest

from router.cost_model import CostModel, Work
from router.fit import FitFamily, solve_nonnegative


def test_it_finds_the_line_behind_noisy_samples() -> None:
    rng, fits = Random(1), FitFamily((1.0, 1.0))
    for _ in range(1000):
        x = rng.random() * 4
        fits.observe("a", (1.0, x), 3.0 + 7.0 * x + rng.gauss(0, 0.1))
    fixed, slope = fits.coefficients("a")
    assert fixed == pytest.approx(3.0, abs=0.2) and slope == pytest.approx(7.0, abs=0.1)


def test_without_evidence_it_is_the_prior_and_with_little_the_family() -> None:
    fits = FitFamily((2.0, 5.0))
    assert fits.coefficients("new") == pytest.approx([2.0, 5.0])
    for i in range(200):
        fits.observe("old", (1.0, i % 3), 10.0 * (i % 3))
    assert fits.coefficients("new") == pytest.approx([0.0, 10.0], abs=0.2)
    fits.observe("new", (1.0, 1.0), 40.0)
    assert fits.coefficients("old")[1] < sum(fits.coefficients("new")) < 40.0


def test_it_follows_what_changes_and_forgives_what_gets_no_work() -> None:
    fits = FitFamily((1.0,))
    for _ in range(500):
        fits.observe("a", (1.0,), 10.0)
    for _ in range(500):
        fits.observe("a", (1.0,), 20.0)
    assert fits.coefficients("a")[0] > 17.0
    fits.observe("unlucky", (1.0,), 1000.0)
    before = fits.coefficients("unlucky")[0]
    for _ in range(2000):
        fits.observe("a", (1.0,), 20.0)
    assert 20.0 < before < 100.0 and fits.coefficients("unlucky")[0] < before


def test_equal_workers_look_equal_though_each_has_few_and_noisy_times() -> None:
    rng, fits = Random(3), FitFamily((2.0, 50.0, 1.0))
    for i in range(240):
        new = rng.choice((500, 4_000, 12_000, 60_000))
        x = (1.0, new / 1e3, new * new / 2e6)
        fits.observe(i % 8, x, (4.0 + 22.6 * x[1] + 0.8 * x[2]) * rng.choice((1.0, 1.0, 1.1, 1.6)))
    per_thousand = [fits.coefficients(key)[1] for key in fits.keys()]
    assert max(per_thousand) < 1.15 * min(per_thousand)
    assert 20.0 < min(per_thousand) and max(per_thousand) < 35.0


def test_a_worker_that_is_truly_slower_is_known_to_be() -> None:
    fits = FitFamily((2.0, 50.0))
    for i in range(400):
        x = (1.0, 1.0 + i % 7)
        for key, factor in (("fast", 1.0), ("slow", 2.0)):
            fits.observe(key, x, factor * (3.0 + 20.0 * x[1]))
    assert fits.coefficients("slow")[1] > 1.5 * fits.coefficients("fast")[1]


def test_no_coefficient_is_negative() -> None:
    fits = FitFamily((0.0, 0.0))
    for x in (1.0, 2.0, 3.0) * 50:
        fits.observe("a", (1.0, x), 10.0 - 2.0 * x)
    fixed, slope = fits.coefficients("a")
    assert slope == 0.0 and fixed > 0.0
    assert solve_nonnegative([[2.0, 0.0], [0.0, 2.0]], [-1.0, -3.0]) == [0.0, 0.0]


def test_the_cost_model_learns_prefill_transfer_and_steps() -> None:
    model, rng = CostModel(), Random(2)
    for _ in range(400):
        ahead, new, cached = rng.randrange(3000), rng.randrange(1, 3000), rng.randrange(3000)
        work = Work(ahead, new, cached, ahead * rng.randrange(5000))
        took_ms = 4.0 + 0.02 * (ahead + new) + 2e-6 * (work.ahead_pairs + work.pairs)
        model.on_first_token("w", work, took_ms)
        size = rng.randrange(20_000_000)
        model.on_transfer(("p", "d"), size, 3.0 + size / 1e6)
        rows = rng.randrange(1, 200)
        model.on_step("d", rows, 6.0 + 0.03 * rows)
    queue_ms, own_ms = model.prefill_ms("w", Work(1000, 2000, 1000, ahead_pairs=5_000_000))
    assert queue_ms == pytest.approx(30.0, rel=0.05) and own_ms == pytest.approx(52.0, rel=0.05)
    assert model.transfer_ms(("p", "d"), 10_000_000) == pytest.approx(13.0, rel=0.05)
    assert model.row_ms("d") == pytest.approx(0.03, rel=0.1)


def test_a_workers_evidence_goes_with_it() -> None:
    model = CostModel()
    for _ in range(5):
        model.on_transfer(("p", "d"), 1_000_000, 500.0)
        model.on_transfer(("q", "d"), 1_000_000, 1.0)
    slow = model.transfer_ms(("p", "d"), 1_000_000)
    model.forget_worker("p")
    assert model.transfer_ms(("p", "d"), 1_000_000) < slow


def test_a_proof_of_a_fast_pair_makes_it_cheap() -> None:
    model = CostModel()
    model.on_proof(("p", "d"), 1e10)
    model.on_proof(("p", "e"), 1e7)
    assert model.transfer_ms(("p", "d"), 10_000_000) < model.transfer_ms(("p", "e"), 10_000_000)


def test_who_has_seen_short_prompts_only_knows_nothing_of_its_own_about_long_ones() -> None:
    rng, fits = Random(5), FitFamily((2.0, 50.0, 1.0))
    for i in range(300):
        new = rng.choice((500, 1_000, 3_000)) if i % 4 == 0 else rng.choice((12_000, 60_000))
        x = (1.0, new / 1e3, new * new / 2e6)
        late = rng.choice((1.0, 0.7)) if i % 4 == 0 else 1.0  # short ones are often done before they are expected to
        fits.observe("short" if i % 4 == 0 else "long", x, (4.0 + 22.6 * x[1] + 0.8 * x[2]) * late)
    assert fits.coefficients("short")[2] > 0.75 * fits.coefficients("long")[2]
