"""Which config a new controller begins with: its own, the one that was wanted last, or an update from there."""

from collections.abc import Mapping
from typing import Any

import pytest

from deploy.fleet import take_over as module
from deploy.fleet.config import FleetConfig, config_from
from deploy.fleet.controller import Controller
from deploy.fleet.found import Found
from deploy.fleet.memory import Memo, plain
from deploy.fleet.recipes import Site
from engine.core.errors import InvalidRequest
from tests.fakes.fleet_world import CONFIG, FakeMemory, FakeNodes, World, fleet, found, lose, ready, running, until

SITE = Site(b"k" * 16, has_gpus=False, offers_router_node=False, only_node=True)
SCALED = {"prefill": 2, "decode": 1, "router": 1}


def file(**values: Any) -> FleetConfig:
    return config_from({**CONFIG, **values})


class Left(FakeMemory):
    """By an earlier controller that was started with `given`."""

    def __init__(self, given: FleetConfig, config: FleetConfig, counts: Mapping[str, int]) -> None:
        super().__init__()
        self._memo = Memo(plain(given), plain(config), dict(counts))

    def claim(self) -> None:
        """Nobody else has it."""

    def load(self) -> Memo:
        return self._memo

    def begin(self, given: FleetConfig) -> None:
        self.given = given


async def take_over(
    monkeypatch: pytest.MonkeyPatch, config: FleetConfig, left: Left, there: list[Found], nodes: FakeNodes
) -> Controller:
    async def find_own(namespace: str, key: bytes) -> list[Found]:
        return there

    monkeypatch.setattr(module, "find_own", find_own)
    monkeypatch.setattr(module, "RayNodes", lambda namespace: nodes)
    return await module.take_over(config, SITE, left, [].append)  # type: ignore[arg-type]


def num_started(world: World) -> int:
    return sum(map(len, world.processes.values()))


async def test_the_same_file_goes_on_where_scaling_and_updates_led(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = {"model": "/models/new", "model_name": "builtin"}
    async with fleet(monkeypatch, **newer) as (first, world):
        await until(lambda: len(ready(first)) == 4)
        await lose(first)
        nodes: Any = first.nodes
        second = await take_over(monkeypatch, file(), Left(file(), file(**newer), SCALED), found(world), nodes)
        async with running(second):
            await until(lambda: ready(second) == {"prefill-0", "prefill-1", "decode-0", "router-0"})
            assert second.config.model == "/models/new" and second.counts == SCALED
            assert num_started(world) == 5, "one more prefill worker"


async def test_another_file_is_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: len(ready(first)) == 4)
        await lose(first)
        newer, nodes = file(drain_s=7.0, pools={"decode": {"cpus": 1}}), first.nodes
        second = await take_over(monkeypatch, newer, Left(file(), file(), SCALED), found(world), nodes)  # type: ignore[arg-type]
        async with running(second):
            await until(lambda: ready(second) == {"decode-0", "router-0"} == second.places.keys())
            assert num_started(world) == 4, "nobody is of another version"


async def test_a_file_that_is_no_update_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: len(ready(first)) == 4)
        await lose(first)
        nodes: Any = first.nodes
        other = file(routers={"port": 0, "grpc_port": 0, "policy": "round_robin"})
        with pytest.raises(InvalidRequest, match="routers: only replicas"):
            await take_over(monkeypatch, other, Left(file(), file(), SCALED), found(world), nodes)
        assert not [
            told for group in world.processes.values() for told in group[-1].told if told[0] in ("drain", "stop")
        ]
        again = await take_over(monkeypatch, file(), Left(file(), file(), {}), found(world), nodes)
        async with running(again):
            await until(lambda: len(ready(again)) == 4)
            assert num_started(world) == 4


async def test_what_is_scaled_automatically_may_be_another_one_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(monkeypatch) as (first, world):
        await until(lambda: len(ready(first)) == 4)
        await lose(first)
        nodes: Any = first.nodes
        pools: dict[str, Any] = {**CONFIG["pools"], "long": {"role": "decode", "cpus": 1}}  # type: ignore[dict-item]
        newer = file(pools=pools, autoscale={"pools": {"decode": {"max": 3}, "long": {"max": 2}}})
        second = await take_over(monkeypatch, newer, Left(file(), file(), SCALED | {"decode": 2}), found(world), nodes)
        async with running(second):
            assert second.counts == {"prefill": 1, "decode": 2, "long": 1, "router": 1}
            await until(lambda: "long-0" in ready(second))
