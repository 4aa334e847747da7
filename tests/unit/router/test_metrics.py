"""What the router's collector makes of the view: workers, pairs, breakers and the index, one sample of each."""

from random import Random

from prometheus_client.core import Metric

from engine.core.messages import PagesCleared, PeerStatus
from router.config import HealthConfig, RouterConfig
from router.core import RouterCore
from router.metrics import CoreCollector
from router.policies.registry import make_policy
from tests.fakes.workers import worker_info

CONFIG = RouterConfig(health=HealthConfig(breaker_failures=1))


def samples(core: RouterCore) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by metric and labels; an AssertionError where two samples have the same ones."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    families: list[Metric] = list(CoreCollector(core).collect())
    assert len({family.name for family in families}) == len(families)
    for family in families:
        for sample in family.samples:
            labels, values = tuple(sample.labels.values()), found.setdefault(sample.name, {})
            assert labels not in values, f"{sample.name}{labels} twice"
            values[labels] = sample.value
    return found


def make_core() -> RouterCore:
    return RouterCore(CONFIG, Random(1), lambda model, rng: make_policy("cost", model, rng))


def test_workers_pairs_breakers_and_index() -> None:
    core = make_core()
    source = core.view.join(worker_info("p", roles=("prefill",)), 0.0)
    target = core.view.join(worker_info("d", roles=("decode",)), 0.0)
    core.view.on_peer_status(target, PeerStatus("p", source.info.incarnation, True, "nixl", 5e9))
    core.view.feeds[target.key].apply(1, [PagesCleared()])
    found = samples(core)
    assert found["baton_router_pair_proven"] == {("p", "d"): 1}
    assert found["baton_router_pair_bytes_per_second"] == {("p", "d"): 5e9}
    assert found["baton_router_pair_breaker_open"] == {("p", "d"): 0}
    assert found["baton_router_worker_index_synced"] == {("p",): 0, ("d",): 1}
    assert found["baton_router_worker_breaker_open"] == {("p",): 0, ("d",): 0}
    assert found["baton_router_worker_ready"] == {("p",): 1, ("d",): 1}

    source.breaker.on_failure(1.0)
    core.view.pair_breaker(source.key, target.key).on_failure(1.0)
    target.draining = True
    found = samples(core)
    assert found["baton_router_worker_breaker_open"] == {("p",): 1, ("d",): 0}
    assert found["baton_router_pair_breaker_open"] == {("p", "d"): 1}
    assert (found["baton_router_worker_draining"], found["baton_router_worker_ready"][("d",)]) == (
        {("p",): 0, ("d",): 1},
        0,
    )


def test_the_last_word_of_a_worker_that_left_does_not_hide_its_successor() -> None:
    core = make_core()
    old = core.view.join(worker_info("p", incarnation=1), 0.0)
    target = core.view.join(worker_info("d", roles=("decode",)), 0.0)
    core.view.leave(old.key)
    assert samples(core).get("baton_router_pair_proven", {}) == {}
    core.view.join(worker_info("p", incarnation=2), 1.0)
    for incarnation, ready in ((2, True), (1, False)):
        core.view.on_peer_status(target, PeerStatus("p", incarnation, ready, "grpc", 1e9))
    assert samples(core)["baton_router_pair_proven"] == {("p", "d"): 1}


def test_every_outcome_is_there_before_it_happens() -> None:
    """Else Prometheus would not see the first of a kind: a rate needs two samples of a series."""
    core = make_core()
    core.stats.outcomes["finished"] += 2
    found = samples(core)
    assert found["baton_router_requests_total"][("finished",)] == 2
    assert found["baton_router_requests_total"][("unavailable",)] == 0
    assert found["baton_router_retries_total"][("worker_lost",)] == 0
    assert found["baton_router_attempts_total"] == {("pair",): 0, ("whole",): 0, ("hedge",): 0}


def test_two_incarnations_of_one_worker_are_one_sample() -> None:
    """Prometheus refuses a page that says one thing twice; what the older one was does not matter any more."""
    core = make_core()
    old, new = (core.view.join(worker_info("p", incarnation=number), 0.0) for number in (1, 2))
    target = core.view.join(worker_info("d", roles=("decode",)), 0.0)
    for worker, ready in ((old, False), (new, True)):
        core.view.on_peer_status(target, PeerStatus("p", worker.info.incarnation, ready, "grpc", 1e9))
    old.breaker.on_failure(1.0)
    found = samples(core)
    assert found["baton_router_pair_proven"] == {("p", "d"): 1}
    assert found["baton_router_worker_breaker_open"] == {("p",): 0, ("d",): 0}
