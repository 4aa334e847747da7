"""A worker that wants to leave: what decodes there moves with its pages, and nothing new comes."""

import pytest

from engine.core.messages import Adopt, Cancel, Drain, Generate, Prefill
from engine.core.types import WorkerInfo
from router.policies.registry import POLICY_NAMES
from tests.fakes.router_world import RouterWorld
from tests.fakes.workers import FakeFaults, FakeWorker, worker_info


def info(name: str) -> WorkerInfo:
    return worker_info(name, roles=("prefill",) if name[0] == "p" else ("decode",))


def world_of(*names: str, policy: str = "cost_always_hand_over", faults: FakeFaults | None = None) -> RouterWorld:
    world = RouterWorld(1, policy, faults=faults)
    for name in names:
        world.add_worker(info(name))
    for _ in range(10):
        world.step()
    return world


def worker(world: RouterWorld, name: str) -> FakeWorker:
    return next(session.worker for session in world.sessions.values() if session.worker.info.id == name)


def decoding(world: RouterWorld, num_calls: int, **sampling: object) -> list[int]:
    """Calls that are in the middle of their answers; their keys."""
    for key in range(num_calls):
        world.call(key, list(range(10 + key, 30 + key)), max_tokens=80, stop_token_ids=(), **sampling)
    while not all(len(world.clients[key].tokens) > 4 for key in range(num_calls)):
        world.step()
    return list(range(num_calls))


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_running_decodes_move_and_go_on_with_the_right_tokens(policy: str) -> None:
    world = world_of("p", "d1", policy=policy)
    keys = decoding(world, 6, num_logprobs=0)
    world.add_worker(info("d2"))
    for _ in range(5):
        world.step()
    source = worker(world, "d1")
    before = len(source.commands)
    source.on_command(Drain(60.0))
    for _ in range(30):
        world.step()
    assert source.idle, "every call moved long before its end"
    assert not any(world.clients[key].ended_s for key in keys)
    told = source.commands[before:]
    assert [type(command) for command in told if isinstance(command, Cancel | Prefill)] == [Cancel, Prefill] * 6
    assert not any(isinstance(command, Generate | Adopt) for command in told)
    world.call(99, [1, 2, 3], max_tokens=3)
    world.run(30.0)
    assert all(client.error is None for client in world.clients.values())
    assert world.core.stats.routes["move"] == 6 and not world.core.stats.retries
    assert all(world.clients[key].deltas[-1].timing.decode_worker == "d2" for key in keys)  # type: ignore[union-attr]
    world.settle()


def test_the_last_decode_worker_keeps_what_it_has() -> None:
    world = world_of("p", "d1")
    keys = decoding(world, 3)
    worker(world, "d1").on_command(Drain(60.0))
    world.run(30.0)
    assert all(world.clients[key].error is None for key in keys)
    assert not world.core.stats.retries and "move" not in world.core.stats.routes
    world.settle()


def test_a_call_moves_as_soon_as_somebody_can_take_it() -> None:
    world = world_of("p", "d1")
    decoding(world, 2)
    worker(world, "d1").on_command(Drain(60.0))
    for _ in range(10):
        world.step()
    assert not worker(world, "d1").idle
    world.add_worker(info("d2"))
    for _ in range(30):
        world.step()
    assert worker(world, "d1").idle and len(worker(world, "d2").rows) == 2
    world.run(30.0)
    world.settle()


def test_a_draining_worker_that_dies_is_an_ordinary_loss() -> None:
    world = world_of("p", "d1", "d2")
    keys = decoding(world, 6)
    source = worker(world, "d1")
    source.on_command(Drain(60.0))
    while not world.core.stats.routes["move"]:
        world.step()
    world.lose_session(source.key, back_in_s=None, dead=True)
    world.run(30.0)
    assert all(world.clients[key].error is None for key in keys)
    world.settle()


def test_a_move_that_fails_becomes_a_retry_elsewhere() -> None:
    world = world_of("p", "d1")
    keys = decoding(world, 3)
    world.faults.fail_handoff = 1.0
    world.add_worker(info("d2"))
    for _ in range(5):
        world.step()
    worker(world, "d1").on_command(Drain(60.0))
    while world.core.stats.retries["handoff"] < 3:
        world.step()
    world.faults.fail_handoff = 0.0
    world.run(30.0)
    assert all(world.clients[key].error is None for key in keys)
    world.settle()


def test_prompts_under_way_there_may_finish() -> None:
    world = world_of("p", "d1", "d2")
    world.call(0, list(range(200)), max_tokens=5)
    while not worker(world, "p").rows:
        world.step()
    worker(world, "p").on_command(Drain(60.0))
    for _ in range(4):
        world.step()
    assert worker(world, "p").rows
    world.call(1, list(range(50, 90)), max_tokens=5)
    world.run(30.0)
    assert all(client.error is None for client in world.clients.values())
    assert not world.core.stats.retries
    assert not any(isinstance(each, Prefill) and each.request.tokens[0] == 50 for each in worker(world, "p").commands)
    world.settle()
