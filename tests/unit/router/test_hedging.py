"""A call whose first token is late gets a second pair: when, how often, and that nothing of the loser is left."""

import asyncio
import random

import pytest

from engine.wire.worker_client import WorkerClient
from router.config import AdmissionConfig, HealthConfig, HedgeConfig, RouterConfig
from router.core import RouterCore
from router.hedging import MIN_TIMES, WINDOW, Hedging
from router.policies.registry import make_policy
from router.service import RouterService
from tests.fakes.grpc_worker import KEY, FakeCluster
from tests.fakes.router_world import RouterWorld
from tests.fakes.workers import answer, worker_info
from tests.unit.router.test_service import call_of, collect, tokens_of, until

PROMPT = list(range(30))
PATIENT = HealthConfig(hung_after_s=60.0)
"""Nobody counts as hung: only a second attempt can help."""


def know(hedging: Hedging, took_s: float) -> None:
    """Prompts of every size have taken so long."""
    for num_new in (1 << bits for bits in range(8)):
        for _ in range(MIN_TIMES):
            hedging.observe(num_new, took_s)


def test_late_is_later_than_nineteen_of_twenty_prompts_of_the_size() -> None:
    hedging = Hedging(HedgeConfig(max_share=0.1))
    for number in range(MIN_TIMES - 1):
        hedging.observe(1000, number / 1000)
    assert hedging.delay_s(1000) is None, "too little is known"
    hedging.observe(1023, 1.0)
    assert hedging.delay_s(600) == 0.038 and hedging.delay_s(1024) is None
    for _ in range(WINDOW):
        hedging.observe(1000, 0.5)
    assert hedging.delay_s(1000) == 0.5, "what was long ago is forgotten"


def test_only_a_share_of_all_calls_is_hedged() -> None:
    hedging = Hedging(HedgeConfig(max_share=0.25))
    taken = 0
    for _ in range(100):
        hedging.sent()
        taken += hedging.take()
    assert taken == 25
    for _ in range(100):
        hedging.sent()
    assert [hedging.take() for _ in range(5)] == [True] * 4 + [False], "what was not used does not pile up"


def make_world(share: float, admission: AdmissionConfig | None = None) -> RouterWorld:
    config = RouterConfig(PATIENT, admission=admission or AdmissionConfig(), hedge=HedgeConfig(max_share=share))
    world = RouterWorld(1, "round_robin", config)
    for name in ("p0", "p1", "d0"):
        world.add_worker(worker_info(name, roles=("prefill",) if name[0] == "p" else ("decode",)))
    while len(world.core.view.links) < 2:
        world.step()
    know(world.core.hedging, 0.1)
    return world


def hang_the_first(world: RouterWorld) -> None:
    """A call is under way, and the worker that computes its prompt stands still for five seconds."""
    world.call(1, PROMPT, max_tokens=6)
    attempt = world.core.calls.flows[1].attempt
    assert attempt is not None
    world.hang(attempt.computes.worker.key, 5.0)


def test_the_second_attempt_answers_and_the_first_ends() -> None:
    world = make_world(share=1.0)
    hang_the_first(world)
    world.run(until_s=3.0)
    (client,) = world.clients.values()
    assert client.tokens == client.expected, "as the first attempt would have answered"
    stats = world.core.stats
    assert (stats.routes["hedge"], stats.routes["hedge_won"], stats.retries.total()) == (1, 1, 0)
    world.settle(for_s=6.0)  # the first worker goes on, hears that it need not, and has nothing left


def test_the_first_attempt_may_still_win() -> None:
    world = make_world(share=1.0)
    hang_the_first(world)
    while not world.core.stats.routes["hedge"]:
        world.step()
    flow = world.core.calls.flows[1]
    assert flow.attempt is not None and flow.rival is not None
    for session in world.sessions.values():
        session.hung_until_s = 0.0
    world.hang(flow.rival.computes.worker.key, 5.0)
    world.run(until_s=3.0)
    assert world.clients[1].tokens == world.clients[1].expected and not world.core.stats.routes["hedge_won"]
    world.settle(for_s=6.0)


@pytest.mark.parametrize("loser", ["attempt", "rival"])
def test_when_one_of_two_fails_the_other_goes_on(loser: str) -> None:
    world = make_world(share=1.0)
    hang_the_first(world)
    while not world.core.stats.routes["hedge"]:
        world.step()
    flow = world.core.calls.flows[1]
    for session in world.sessions.values():
        session.hung_until_s = 0.0
    world.lose_session(getattr(flow, loser).computes.worker.key, None, dead=True)
    assert len(flow.attempts) == 1 and not world.core.stats.retries.total()
    world.run(until_s=3.0)
    assert world.clients[1].tokens == world.clients[1].expected
    world.settle()


def test_a_client_that_leaves_ends_both() -> None:
    world = make_world(share=1.0)
    hang_the_first(world)
    while not world.core.stats.routes["hedge"]:
        world.step()
    world.cancel(1)
    world.settle(for_s=6.0)


def test_nothing_is_hedged_unless_asked_for_nor_onto_work_nor_while_calls_wait() -> None:
    world = make_world(share=0.0)
    hang_the_first(world)
    world.run(until_s=2.0)
    assert world.waiting and not world.core.stats.routes["hedge"]

    world = make_world(share=1.0)
    hang_the_first(world)
    for worker in world.core.view:
        worker._sent_tokens += 1  # the other one has something to do
    world.run(until_s=2.0)
    assert world.waiting and not world.core.stats.routes["hedge"]

    world = make_world(share=1.0, admission=AdmissionConfig(max_running=1))
    hang_the_first(world)
    world.call(2, PROMPT, max_tokens=6)
    world.run(until_s=2.0)
    assert len(world.waiting) == 2 and not world.core.stats.routes["hedge"]


async def test_over_real_sessions_a_worker_that_stands_still_delays_nobody() -> None:
    config = RouterConfig(PATIENT, hedge=HedgeConfig(max_share=1.0))
    core = RouterCore(config, random.Random(1), lambda model, rng: make_policy("round_robin", model, rng))
    service = RouterService(core, lambda address: WorkerClient(address, KEY, silence_s=60.0))
    await service.start()
    try:
        async with FakeCluster() as cluster:
            workers = {name: await cluster.start(worker_info(name, roles=(role,))) for name, role in
                       (("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"))}  # fmt: skip
            for worker in workers.values():
                service.add_worker(worker.info.address)
            await until(lambda: len(core.view.links) == 2 and len(core.view.workers) == 3)
            know(core.hedging, 0.05)
            workers["p0"].frozen = True
            calls = [call_of([number, *PROMPT], seed=number) for number in range(4)]
            results = await asyncio.gather(*(collect(service, call) for call in calls))
            for call, deltas in zip(calls, results, strict=True):
                assert tokens_of(deltas) == answer(call.tokens, call.sampling)
                timing = deltas[-1].timing
                assert timing is not None and timing.prefill_worker == "p1"
            assert core.stats.routes["hedge_won"] == 2
            workers["p0"].frozen = False
            await until(lambda: all(worker.worker.idle for worker in workers.values()))
    finally:
        await service.stop()
