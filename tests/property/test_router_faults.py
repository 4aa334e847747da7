"""Whatever workers and sessions do, each call ends once, in time, with right tokens or an error, and leaves nothing."""

from array import array
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.digest import page_keys
from engine.core.errors import DeadlineExceeded, Overloaded, Unavailable
from engine.core.messages import Drain
from engine.core.types import Request, Sampling
from router.config import AdmissionConfig, HedgeConfig, RouterConfig
from router.hedging import MIN_TIMES
from router.policies.registry import POLICY_NAMES
from tests.fakes.router_world import Rights, RouterWorld
from tests.fakes.workers import FakeFaults, worker_info

SHORT_S = 0.3
"""Too short for some calls even without faults."""
TICK_S = 0.06
"""A deadline is noticed with the next tick."""


def build(seed: int, policy: str) -> RouterWorld:
    rng = Random(seed)
    faults = FakeFaults(
        refuse=rng.choice((0.0, 0.05)), fail_handoff=rng.choice((0.0, 0.2)), lose_events=rng.choice((0.0, 0.2))
    )
    admission = AdmissionConfig(
        max_running=rng.choice((3, 1000)),
        max_queued=rng.choice((2, 1000)),
        max_worker_queue_s=rng.choice((None, 0.0, 0.002)),
    )
    hedge = HedgeConfig(max_share=rng.choice((0.0, 1.0)))
    world = RouterWorld(seed, policy, RouterConfig(admission=admission, hedge=hedge), faults)
    for num_new in range(1, 200):  # whatever takes longer than two steps is late
        for _ in range(MIN_TIMES):
            world.core.hedging.observe(num_new, 0.02)
    if rng.random() < 0.3:
        for i in range(rng.randint(1, 3)):
            world.add_worker(worker_info(f"both{i}", page_size=rng.choice((4, 8))))
    else:
        for role in ("prefill", "decode"):
            for i in range(rng.randint(1, 3)):
                world.add_worker(worker_info(f"{role}{i}", roles=(role,), num_pages=rng.choice((8, 64))))
    return world


def disturb(world: RouterWorld, rng: Random) -> None:
    """Now and then something happens to a worker."""
    if not world.sessions or rng.random() > 0.01:
        return
    key = rng.choice(sorted(world.sessions))
    kind = rng.choice(("hang", "drop", "drain", "die", "die for good"))
    if kind == "hang":
        world.hang(key, rng.choice((0.2, 0.9, 2.0)))
    elif kind == "drain":
        world.sessions[key].worker.on_command(Drain(60.0))
    elif kind != "die for good" or len(world.sessions) > 2:
        back_in_s = None if kind == "die for good" else rng.random()
        world.lose_session(key, back_in_s, dead=kind != "drop")


def let_drained_leave(world: RouterWorld, rng: Random) -> None:
    """A worker that drains leaves when it is empty, and another one comes."""
    for key, session in list(world.sessions.items()):
        if session.worker.draining and session.worker.idle:
            world.lose_session(key, rng.random(), dead=True)


def send_some(world: RouterWorld, rng: Random, next_key: int) -> int:
    """Clients come in bursts, share prefixes, and some of them leave."""
    if rng.random() < 0.1:
        shared = [rng.randrange(90)] * rng.choice((0, 8, 30))
        for _ in range(rng.choice((1, 1, 4))):
            prompt = shared + [rng.randrange(90) for _ in range(rng.randint(1, 40))]
            world.call(
                next_key,
                prompt,
                timeout_s=rng.choice((SHORT_S, 10.0, 20.0)),
                rights=Rights(rng.choice("ab"), rng.choice((0, 0, 1)), rng.choice((1.0, 3.0)), rng.choice((None, 1.0))),
                max_tokens=rng.choice((1, 2, 5, 40)),
                num_logprobs=rng.choice((None, 0)),
                stop_token_ids=rng.choice(((), (7,), tuple(range(30)))),
            )
            next_key += 1
    if world.waiting and rng.random() < 0.02:
        world.cancel(rng.choice([key for key, client in world.clients.items() if client in world.waiting]))
    return next_key


def check_index(world: RouterWorld) -> None:
    """Once every worker has said one thing more and nothing is lost any more, the index is what the workers hold."""
    world.faults.lose_events = 0.0
    for session in world.sessions.values():
        tokens = array("i", range(50, 58))
        session.worker.cache.store(Request(1, tokens, 8, Sampling(), 0.0, 1.0, cache_salt=b"the last one"))
    world.settle(for_s=6.0)
    for key, worker in world.core.view.workers.items():
        assert world.core.view.feeds[key].synced
        assert world.core.view.index.pages(worker.slot) == set(page_keys(world.sessions[key].worker.cache.parents))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), policy=st.sampled_from(POLICY_NAMES))
def test_each_call_ends_once_with_right_tokens_and_leaves_nothing(seed: int, policy: str) -> None:
    disturbed_service(seed, policy)


@pytest.mark.slow(seconds=20)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), policy=st.sampled_from(POLICY_NAMES))
def test_so_it_is_with_many_seeds(seed: int, policy: str) -> None:
    disturbed_service(seed, policy)


def disturbed_service(seed: int, policy: str) -> None:
    world, rng = build(seed, policy), Random(seed + 1)
    next_key = 1
    while world.now < 3.0:
        next_key = send_some(world, rng, next_key)
        disturb(world, rng)
        let_drained_leave(world, rng)
        world.step()
    while world.now < 30.0 and world.waiting:
        let_drained_leave(world, rng)
        world.step()
    assert not world.waiting, "a call without an outcome"
    for client in world.clients.values():
        if client.ended_s is not None:
            assert client.ended_s - client.sent_s <= client.call.timeout_s + TICK_S
        patient = client.call.timeout_s > SHORT_S
        allowed = (Overloaded, Unavailable) if patient else (Overloaded, Unavailable, DeadlineExceeded)
        assert client.error is None or isinstance(client.error, allowed)
    for session in world.sessions.values():
        session.hung_until_s = 0.0
    world.settle()
    check_index(world)
    outcomes = world.core.stats.outcomes
    assert sum(outcomes.values()) == world.core.stats.calls == len(world.clients)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), policy=st.sampled_from(POLICY_NAMES))
def test_without_faults_every_call_succeeds_at_the_first_try(seed: int, policy: str) -> None:
    world, rng = RouterWorld(seed, policy), Random(seed + 1)
    for name in ("p0", "p1", "d0", "d1"):
        world.add_worker(worker_info(name, roles=("prefill",) if name[0] == "p" else ("decode",)))
    next_key = 1
    while world.now < 1.0:
        next_key = send_some(world, rng, next_key)
        world.step()
    world.run(until_s=30.0)
    for client in world.clients.values():
        assert client.error is None or client.call.timeout_s == SHORT_S
    world.settle()
    assert not world.core.stats.retries
    check_index(world)


def test_the_same_seed_gives_the_same_run() -> None:
    def outcomes(seed: int) -> list[object]:
        world, rng = build(seed, "cost"), Random(seed)
        next_key = 1
        while world.now < 2.0:
            next_key = send_some(world, rng, next_key)
            disturb(world, rng)
            world.step()
        return [(client.tokens, client.ended_s) for client in world.clients.values()]

    assert outcomes(5) == outcomes(5)
    with pytest.raises(AssertionError):
        assert outcomes(5) == outcomes(6)
