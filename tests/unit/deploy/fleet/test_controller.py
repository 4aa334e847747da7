"""The shell around the reconciler: real controller, lives and tasks; nodes and processes are fakes."""

import asyncio
from typing import Any

import pytest

from deploy.fleet import controller as module
from deploy.fleet.adopt import Stage
from deploy.fleet.config import FleetConfig, config_from
from deploy.fleet.plan import Phase
from deploy.fleet.recipes import ModelFacts
from deploy.fleet.scaling import autoscale
from engine.core.errors import InvalidRequest, NotFound
from engine.core.types import WorkerLoad
from tests.fakes.fleet_world import (
    CONFIG,
    FakeMemory,
    FakeNodes,
    fleet,
    found,
    lose,
    new_controller,
    ready,
    running,
    until,
)

ALL = {"prefill-0", "decode-0", "decode-1", "router-0"}


async def test_everything_starts_and_the_router_hears_of_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        added = {told[1] for told in world.last("router-0").told if told[0] == "add_worker"}
        assert added == {info.address for info in world.workers}
        assert len(controller.nodes.rooms) == 4  # type: ignore[attr-defined]


async def test_who_dies_comes_back_as_another_and_the_router_is_told_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        dead = world.last("decode-0")
        dead.die("its node is lost")
        await until(lambda: len(world.processes["decode-0"]) == 2 and ready(controller) == ALL)
        told = world.last("router-0").told
        assert ("remove_worker", dead.info.address) in told
        assert ("add_worker", world.last("decode-0").info.address) in told
        assert controller.places["decode-0"].deaths == 1
        world.last("router-0").die("it broke")
        await until(lambda: len(world.processes["router-0"]) == 2 and ready(controller) == ALL)
        added = {told[1] for told in world.last("router-0").told if told[0] == "add_worker"}
        assert added == {info.address for info in world.workers}


async def test_a_node_that_does_not_answer_is_avoided_though_ray_still_lists_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = FakeNodes(names=("a", "b"))
    async with fleet(monkeypatch, nodes) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        there = controller.lives["decode-1"].last_node
        world.last("decode-1").die("its node does not answer", unreachable=True)
        await until(lambda: len(world.processes["decode-1"]) == 2 and ready(controller) == ALL)
        life = controller.lives["decode-1"]
        assert life.name == "decode-1.2" and {there, life.last_node} == {"a", "b"}


async def test_who_never_starts_is_given_up_visibly_and_tried_again_when_scaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(monkeypatch) as (controller, world):
        world.refuse["decode-1"] = "out of memory"
        await until(lambda: any(place.phase is Phase.GIVEN_UP for place in controller.places.values()))
        assert len(world.processes["decode-1"]) == 3
        assert controller.detail_of("decode-1") == "out of memory"
        world.refuse.clear()
        controller.scale({"decode": 2})
        await until(lambda: ready(controller) == ALL)


async def test_what_fits_nowhere_waits_and_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = FakeNodes(cpus=2.0)
    async with fleet(monkeypatch, nodes) as (controller, _):
        await until(lambda: len(ready(controller)) == 3 and any(life.lack for life in controller.lives.values()))
        (waiting,) = (life for life in controller.lives.values() if life.lack)
        assert waiting.lack == "lacks CPU 1 (the best node has 0 left of 2)"
        nodes.cpus = 3.0
        await until(lambda: ready(controller) == ALL)


async def test_scale_drains_and_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        controller.scale({"decode": 1, "prefill": 2})
        await until(lambda: controller.places.keys() == {"prefill-0", "prefill-1", "decode-0", "router-0"})
        assert ("drain", 60.0) in world.last("decode-1").told
        with pytest.raises(NotFound, match="no pool 'x'"):
            controller.scale({"x": 1})
        with pytest.raises(InvalidRequest, match="no worker would be left"):
            controller.scale({"decode": 0, "prefill": 0})


async def test_whom_an_operator_drains_is_not_replaced_and_whom_a_signal_drains_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        world.last("decode-1").die("it was drained", wanted=True)
        await until(lambda: "decode-1" not in controller.places)
        assert controller.counts["decode"] == 1
        world.last("decode-0").die("it was drained", wanted=True, signalled=True)
        await until(lambda: len(world.processes["decode-0"]) == 2 and "decode-0" in ready(controller))


async def test_a_role_is_changed_in_the_same_process_and_not_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        with pytest.raises(InvalidRequest, match="prefill has 1 ready: one must stay"):
            controller.change_role("prefill-0", "decode")
        with pytest.raises(NotFound, match="no worker 'router-0'"):
            controller.change_role("router-0", "decode")
        old = world.last("decode-1").info
        controller.change_role("decode-1", "prefill")
        await until(lambda: controller.places["decode-1"].pool == "prefill" and ready(controller) == ALL)
        new = world.last("decode-1").info
        assert len(world.processes["decode-1"]) == 1 and (new.roles, new.id) == (("prefill",), old.id)
        assert new.incarnation != old.incarnation
        assert controller.counts == {"prefill": 2, "decode": 1, "router": 1}


async def test_another_shape_is_another_model_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = {"prefill": {"cpus": 2}, "decode": {"cpus": 1, "replicas": 2}}
    async with fleet(monkeypatch, pools=pools) as (controller, _):
        await until(lambda: ready(controller) == ALL)
        with pytest.raises(InvalidRequest, match="its model would have to be loaded again"):
            controller.change_role("decode-1", "prefill")


async def test_an_update_replaces_all_workers_and_refuses_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(**values: Any) -> FleetConfig:
        return config_from({**CONFIG, **values})

    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"name": "other"}, "name: the service is 'baton'"),
            ({"model_name": "other"}, "model_name: clients know it as 'builtin'"),
            ({"autoscale": {"pools": {"decode": {"max": 9}}}}, "autoscale: it cannot be updated"),
            ({"routers": {"port": 0, "grpc_port": 0, "policy": "round_robin"}}, "routers: only replicas"),
            ({"tls": {"cluster": "/tls"}}, "tls: its files may change, not their names"),
        ]
        for values, words in wrong:
            with pytest.raises(InvalidRequest, match=words):
                controller.update(changed(**values))
        before = {(info.id, info.incarnation) for info in world.workers}
        controller.update(changed(model="/models/new"))
        version = controller.version_of("decode")
        await until(
            lambda: (
                len(ready(controller)) == 4 and {place.version for place in controller.places.values()} == {"", version}
            )
        )
        assert not before & {(info.id, info.incarnation) for info in world.workers}
        assert controller.config.served_name == "builtin", "what clients call it stays"
        monkeypatch.setattr(module, "model_facts", lambda config: ModelFacts(config.model, "other text"))
        with pytest.raises(InvalidRequest, match="another tokenizer"):
            controller.update(changed(model="/models/third"))


async def test_routers_end_first_and_may_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        ended: list[str] = []
        for group in world.processes.values():
            group[0].end.add_done_callback(lambda _, id=group[0].id: ended.append(id))
        await controller.stop(7.0)
        assert ended[0] == "router-0" and set(ended) == ALL
        assert ("stop", 7.0) in world.last("router-0").told


async def test_a_new_controller_goes_on_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a scaled fleet, whose decode-0 was replaced and decode-1 died while nobody looked."""
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: ready(first) == ALL)
        first.scale({"prefill": 2})
        world.last("decode-0").die("its node is lost")
        await until(lambda: ready(first) == {*ALL, "prefill-1"} and len(world.processes["decode-0"]) == 2)
        memory = FakeMemory(dict(first.counts))
        await lose(first)
        gone = world.last("decode-1").info
        world.last("decode-1").die("its process died")
        before = {id: group[-1] for id, group in world.processes.items()}
        async with running(new_controller(world, first.nodes, memory)) as second:  # type: ignore[arg-type]
            second.adopt(found(world), memory.counts)
            await until(lambda: ready(second) == {*ALL, "prefill-1"})
            names = {room.group for room in second.nodes.rooms}  # type: ignore[attr-defined]
            assert names == {"decode-0.2", "decode-1.2", "prefill-0", "prefill-1", "router-0"}
            assert {id for id, group in world.processes.items() if group[-1] is not before[id]} == {"decode-1"}
            assert second.lives["decode-1"].name == "decode-1.2", "Ray may know the first name still"
            assert second.counts == {"prefill": 2, "decode": 2, "router": 1}
            world.last("decode-0").die("it broke")
            await until(lambda: len(world.processes["decode-0"]) == 3 and ready(second) == {*ALL, "prefill-1"})
            assert second.lives["decode-0"].name == "decode-0.3"
            assert ("remove_worker", gone.address) not in before["router-0"].told, "the router had lost it"


async def test_a_router_forgets_whom_it_still_knows_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: ready(first) == ALL)
        await lose(first)
        memory = FakeMemory(dict(first.counts))
        seen = found(world, {"decode-1": Stage.ENDED})
        async with running(new_controller(world, first.nodes, memory)) as second:  # type: ignore[arg-type]
            second.adopt(seen, memory.counts)
            await until(lambda: ready(second) == ALL)
            assert ("remove_worker", seen[2].actor.info.address) in world.last("router-0").told
            assert ("stop", 0.0) in seen[2].actor.told, "a stray is ended"


async def test_what_starts_or_drains_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: ready(first) == ALL)
        await lose(first)
        before = {id: group[-1] for id, group in world.processes.items()}
        async with running(new_controller(world, first.nodes, FakeMemory())) as second:  # type: ignore[arg-type]
            second.adopt(found(world, {"decode-0": Stage.STARTING, "decode-1": Stage.DRAINING}), {})
            await until(lambda: ready(second) == {"prefill-0", "decode-0", "decode-2", "router-0"})
            await until(lambda: "decode-1" not in second.places)
            assert world.last("decode-0") is before["decode-0"]
            assert [told[0] for told in before["decode-1"].told] == ["drain", "stop"]


async def test_of_another_version_it_is_replaced_and_on_a_lost_node_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: ready(first) == ALL)
        await lose(first)
        before = {info.incarnation for info in world.workers}
        async with running(new_controller(world, first.nodes, FakeMemory(), model="/models/new")) as second:  # type: ignore[arg-type]
            second.adopt(found(world), {})
            wanted = second.version_of("decode")
            await until(lambda: {place.version for place in second.places.values()} == {"", wanted})
            await until(lambda: len(ready(second)) == 4)
            assert len(world.processes["router-0"]) == 1 and before
            await lose(second)
            async with running(new_controller(world, second.nodes, FakeMemory())) as third:  # type: ignore[arg-type]
                third.adopt(found(world, node="gone"), {})
                await until(lambda: ready(third) == ALL)
                assert any(line.startswith("taking over nothing; ending ") for line in world.said)


async def test_the_autoscaler_reads_the_routers_and_scales_as_an_operator_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand prompt tokens wait, and a worker computes a hundred in a second."""
    options = {"pools": {"prefill": {"min": 1, "max": 3}}, "every_s": 0.001, "up_after_s": 0.0, "cooldown_s": 3600.0}
    said: list[str] = []
    async with fleet(monkeypatch, autoscale=options) as (controller, world):
        await until(lambda: ready(controller) == ALL)
        world.load = WorkerLoad(1, 0.0, 9, 10_000, 0, 64, 64, 0.0, 100.0)
        assert controller.config.autoscale is not None
        scaling = asyncio.create_task(autoscale(controller, controller.config.autoscale, said.append))
        await until(lambda: {"prefill-0", "prefill-1", "prefill-2"} <= ready(controller))
        scaling.cancel()
        assert said == ["autoscale: prefill 1 -> 3 (pressure 200.00: prompts wait)"]
        assert controller.counts["decode"] == 2
        with pytest.raises(InvalidRequest, match="autoscale keeps prefill between 1 and 3, not 4"):
            controller.scale({"prefill": 4})
