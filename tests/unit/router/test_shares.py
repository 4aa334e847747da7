"""Tenants among fake workers in virtual time: floods, objectives, priorities; the whole router core."""

import pytest

from engine.core.errors import Overloaded
from router.config import AdmissionConfig, RouterConfig
from router.cost_model import Work
from router.intake import TooLate
from tests.fakes.router_world import Client, Rights, RouterWorld
from tests.fakes.workers import worker_info

MAX_TOKENS = 3


def send(world: RouterWorld, key: int, tenant: str, length: int = 64, ttft_slo_s: float | None = None) -> Client:
    """A call with a prompt of its own."""
    prompt = [(key * 31 + place) % 90 for place in range(length)]
    return world.call(key, prompt, 600.0, Rights(tenant, ttft_slo_s=ttft_slo_s), max_tokens=MAX_TOKENS)


def teach(world: RouterWorld, ms_per_token: float) -> None:
    """What prompts take here, as far as the router has seen."""
    (worker,) = world.core.view
    for count in range(300):
        ahead, new = 100 * (count % 7), 100 * (1 + count % 11)
        world.core.model.on_first_token(worker.key, Work(ahead, new, 0), (ahead + new) * ms_per_token)


def world_with(admission: AdmissionConfig) -> RouterWorld:
    world = RouterWorld(5, config=RouterConfig(admission=admission))
    world.add_worker(worker_info("w"))
    return world


def longest_wait_s(tenant: str) -> float:
    """Of a few calls of `tenant` that come while another one floods a router with few places."""
    world = world_with(AdmissionConfig(max_running=4))
    for key in range(200):
        send(world, key, "flood")
    modest = []
    for key in range(1000, 1010):
        world.run(world.now + 0.2)
        modest.append(send(world, key, tenant))
    world.run(600.0)
    world.settle()
    assert all(client.error is None for client in world.clients.values())
    return max(client.ended_s - client.sent_s for client in modest if client.ended_s is not None)


def test_a_flood_of_one_tenant_does_not_delay_another() -> None:
    alone = world_with(AdmissionConfig())
    undisturbed = send(alone, 1, "modest")
    alone.run(60.0)
    assert undisturbed.ended_s
    assert longest_wait_s("modest") < 4 * undisturbed.ended_s
    assert longest_wait_s("flood") > 20 * undisturbed.ended_s, "as it would be in one queue for all"


def test_calls_wait_here_while_every_worker_has_enough_to_do() -> None:
    world = world_with(AdmissionConfig(max_worker_queue_s=0.01))
    teach(world, ms_per_token=0.05)
    for key in range(50):
        send(world, key, "flood", length=200)
    assert 0 < world.core.admission.num_running < 5
    assert world.core.admission.num_waiting == 50 - world.core.admission.num_running
    modest = send(world, 100, "modest", length=200)
    world.run(600.0)
    world.settle()
    ends = sorted(client.ended_s or 0.0 for client in world.clients.values())
    assert modest.ended_s is not None and modest.ended_s <= ends[10], "it went among the first"
    assert all(client.error is None for client in world.clients.values())


def test_without_workers_calls_do_not_wait_for_their_turn_for_ever() -> None:
    world = RouterWorld(5, config=RouterConfig(admission=AdmissionConfig(max_worker_queue_s=0.01)))
    client = send(world, 1, "a")
    world.run(60.0)
    assert client.error is not None and client.error.message == "no worker is ready"


def test_a_full_queue_gives_up_calls_of_the_tenant_that_fills_it() -> None:
    world = world_with(AdmissionConfig(max_running=1, max_queued=4))
    flood = [send(world, key, "flood") for key in range(6)]
    assert [type(client.error) for client in flood] == [type(None)] * 5 + [Overloaded]
    modest = send(world, 10, "modest")
    assert isinstance(flood[4].error, Overloaded) and flood[4].error.retry_after_s and modest.error is None
    world.run(60.0)
    world.settle()
    assert modest.tokens == modest.expected
    assert world.core.stats.outcomes == {"finished": 5, "resource_exhausted": 2}, "a refusal is an outcome"


def test_what_would_miss_its_objective_is_refused_at_once() -> None:
    world = world_with(AdmissionConfig())
    teach(world, ms_per_token=1.0)
    hopeful = send(world, 1, "a", length=500, ttft_slo_s=2.0)
    assert hopeful.error is None
    late = send(world, 2, "a", length=500, ttft_slo_s=0.7)
    assert isinstance(late.error, TooLate) and 0.1 <= (late.error.retry_after_s or 0) < 1.0
    assert send(world, 3, "a", length=500).error is None, "without an objective nothing is refused"
    world.run(60.0)
    world.settle()
    assert world.core.stats.outcomes["resource_exhausted"] == 1


def test_who_waits_here_counts_for_the_objective_of_its_own_tenant_only() -> None:
    world = world_with(AdmissionConfig(max_running=1))
    teach(world, ms_per_token=1.0)
    for key in range(20):
        send(world, key, "flood", length=500)
    assert isinstance(send(world, 100, "flood", length=500, ttft_slo_s=5.0).error, TooLate)
    assert send(world, 101, "modest", length=500, ttft_slo_s=5.0).error is None


@pytest.mark.parametrize("tenants", [("a", "b"), ("a", "a")])
def test_only_a_tenant_s_own_calls_find_what_it_computed(tenants: tuple[str, str]) -> None:
    world = world_with(AdmissionConfig())
    first = world.call(1, list(range(64)), rights=Rights(tenants[0]))
    world.run(60.0)
    second = world.call(2, list(range(64)), rights=Rights(tenants[1]))
    world.run(120.0)
    expected = 60 if tenants[0] == tenants[1] else 0
    assert (first.deltas[0].cached_tokens, second.deltas[0].cached_tokens) == (0, expected)
