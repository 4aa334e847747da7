"""When a pool grows and shrinks, on a clock of its own; and what the readings are made of."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from deploy.fleet.autoscale import Autoscaler, Bounds, Objectives, Sample, ScaleConfig, pressure
from deploy.fleet.measuring import Meter, read
from engine.core.types import WorkerLoad
from router.api import ServiceStatus, WorkerStatus
from tests.fakes.workers import worker_info

CONFIG = ScaleConfig(low=0.6, up_after_s=5.0, down_after_s=20.0, cooldown_s=30.0, max_step=2)


def play(scaler: Autoscaler, readings: dict[float, float], count: int = 2) -> list[tuple[float, int]]:
    """The decisions, each carried out at once."""
    made = []
    for now, value in readings.items():
        decision = scaler.decide("decode", count, Sample(count), (value, "a reason"), now)
        if decision is not None:
            count = decision.count
            made.append((now, count))
    return made


def steady(value: float, begin: int, end: int) -> dict[float, float]:
    return {float(now): value for now in range(begin, end)}


def test_pressure_must_last_before_a_pool_grows_and_then_it_rests() -> None:
    scaler = Autoscaler({"decode": Bounds(1, 8)}, CONFIG)
    assert play(scaler, steady(1.5, 0, 5)) == []
    assert play(scaler, steady(1.5, 5, 60)) == [(5.0, 3), (40.0, 5)]


def test_a_dip_begins_the_count_again_and_between_the_marks_nothing_happens() -> None:
    scaler = Autoscaler({"decode": Bounds(1, 8)}, CONFIG)
    assert play(scaler, steady(1.5, 0, 4) | steady(0.9, 4, 6) | steady(1.5, 6, 11)) == []
    assert play(scaler, steady(0.9, 11, 500)) == []


def test_it_shrinks_one_by_one_only_when_one_less_would_be_idle_enough() -> None:
    scaler = Autoscaler({"decode": Bounds(1, 8)}, CONFIG)
    assert play(scaler, steady(0.31, 0, 100)) == [], "0.62 for one worker is above the mark"
    assert play(scaler, steady(0.2, 100, 130)) == [(120.0, 1)]
    decisions = [scaler.decide("decode", 2, Sample(2), (0.2, "workers are busy"), now) for now in (300.0, 320.0)]
    assert [each and each.reason for each in decisions] == [None, "pressure 0.20: one less is enough"]


def test_bounds_and_pools_that_nobody_named_are_kept() -> None:
    assert play(Autoscaler({"decode": Bounds(2, 3)}, CONFIG), steady(9.0, 0, 300)) == [(5.0, 3)]
    assert play(Autoscaler({"decode": Bounds(2, 3)}, CONFIG), steady(0.0, 0, 300)) == []
    assert play(Autoscaler({"prefill": Bounds(1, 9)}, CONFIG), steady(9.0, 0, 300)) == []


def test_a_pool_in_motion_is_left_alone() -> None:
    scaler = Autoscaler({"decode": Bounds(1, 8)}, CONFIG)
    for now in range(60):
        assert scaler.decide("decode", 3, Sample(num_ready=2), (5.0, ""), float(now)) is None


@pytest.mark.parametrize(
    ("role", "sample", "value", "measure"),
    [
        ("prefill", Sample(2, queued_tokens=1000, tokens_per_s=500), 2.0, "prompts wait"),
        ("prefill", Sample(2, tokens_per_s=500, new_tokens_per_s=400), 0.5, "workers are busy"),
        ("prefill", Sample(2, num_timed=100, num_late=8), 1.6, "requests are late"),
        ("prefill", Sample(2, num_timed=100, num_late=100), 2.0, "requests are late"),
        ("decode", Sample(2, pages_used=0.6), 0.75, "pages are held"),
        ("decode", Sample(2, pages_used=0.1, num_timed=100, num_late=10), 2.0, "tokens are late"),
    ],
)
def test_the_reading_is_the_worst_of_what_matters_to_the_role(
    role: str, sample: Sample, value: float, measure: str
) -> None:
    objectives = Objectives(ttft_s=1.0, attainment=0.95, max_wait_share=0.5, max_busy=0.8, max_pages=0.8)
    assert pressure(role, sample, objectives) == (pytest.approx(value), measure)


class FakeRouter:
    """The metrics of one, as a router names them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ttft = Histogram("baton_router_ttft_seconds", "", registry=self.registry, buckets=(0.1, 0.5, 1.0))
        self.itl = Histogram("baton_router_itl_seconds", "", registry=self.registry, buckets=(0.1, 0.5))
        self.prompt = Counter("baton_router_prompt_tokens", "", registry=self.registry)
        self.cached = Counter("baton_router_cached_tokens", "", registry=self.registry)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def status(*loads: tuple[str, WorkerLoad]) -> ServiceStatus:
    workers = tuple(
        WorkerStatus(worker_info(id, roles=(role,)), "ready", "", load, 0.0, (), 0)
        for id, load in loads
        for role in ["prefill" if id[0] == "p" else "decode"]
    )
    return ServiceStatus(True, "", workers, 0, 0, 0, 0)


def test_samples_are_of_the_time_since_the_last_look_over_all_routers() -> None:
    meter, routers = Meter(Objectives(ttft_s=0.5, itl_s=0.1)), {"router-0": FakeRouter(), "router-1": FakeRouter()}
    busy = status(
        ("p0", WorkerLoad(1, 0.0, 0, 300, 0, 10, 100, 0.0, 1000.0)),
        ("d0", WorkerLoad(1, 0.0, 0, 0, 3, 25, 100, 0.0, 0.0)),
    )
    pools = {"prefill": ["p0"], "decode": ["d0"]}

    def look(now: float) -> dict[str, Sample]:
        return meter.samples({id: router.text() for id, router in routers.items()}, [busy, busy], pools, now)

    routers["router-0"].ttft.observe(0.9)
    assert look(10.0) == {}
    for router in routers.values():
        router.ttft.observe(0.2)
        router.ttft.observe(0.7)
        router.itl.observe(0.05)
        router.prompt.inc(500)
        router.cached.inc(100)
    samples = look(12.0)
    assert samples["prefill"] == Sample(1, 300, 1000.0, 400.0, 0.9, num_timed=4, num_late=2)
    assert (samples["decode"].pages_used, samples["decode"].num_timed, samples["decode"].num_late) == (0.75, 2, 0)
    routers["router-1"] = FakeRouter()
    assert look(14.0)["prefill"].num_timed == 0, "a router that was started again counts from its second look on"


def test_an_objective_between_two_buckets_counts_as_the_upper_one() -> None:
    router = FakeRouter()
    router.ttft.observe(0.4)
    assert read(router.text(), Objectives(ttft_s=0.3)).timed["prefill"] == (1, 1)
    assert read(router.text(), Objectives(ttft_s=99.0)).timed["prefill"] == (1, 1)
