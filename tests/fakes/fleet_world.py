"""Real controllers over processes and nodes that are fakes: they start, drain and end when they are told, at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from deploy.actors import Endpoints
from deploy.fleet import controller as module
from deploy.fleet import lives
from deploy.fleet.adopt import Stage
from deploy.fleet.config import FleetConfig, config_from
from deploy.fleet.controller import Controller
from deploy.fleet.found import Found
from deploy.fleet.nodes import Room
from deploy.fleet.placing import Node
from deploy.fleet.plan import Phase
from deploy.fleet.recipes import ModelFacts, Recipe, Site
from deploy.supervisor import End
from deploy.tags import Description, Tag
from engine.core.errors import Unavailable
from engine.core.messages import PeerStatus
from engine.core.types import WorkerInfo, WorkerLoad
from router.api import ServiceStatus, WorkerStatus
from tests.fakes.workers import worker_info

CONFIG = {
    "pools": {"prefill": {"cpus": 1}, "decode": {"cpus": 1, "replicas": 2}},
    "routers": {"port": 0, "grpc_port": 0},
    "restart": {"max_restarts": 2, "first_s": 0.0, "max_s": 0.0},
}


@dataclass
class FakeNodes:
    """As RayNodes; rooms that were given and not taken back are in `rooms`."""

    cpus: float = 8.0
    names: tuple[str, ...] = ("n",)
    rooms: list[Room] = field(default_factory=list)

    def view(self) -> list[Node]:
        return [Node(name, {"CPU": self.cpus}, {"CPU": self.cpus - self._used(name)}, {}, name) for name in self.names]

    def _used(self, name: str) -> float:
        return sum(room.resources.get("CPU", 0.0) for room in self.rooms if room.node.id == name)

    def own(self) -> str:
        return "n"

    async def reserve(self, node: Node, resources: Mapping[str, float], name: str) -> Room:
        room = FakeRoom(node, dict(resources), name)
        self.rooms.append(room)
        return room

    def release(self, room: Room) -> None:
        if room in self.rooms:
            self.rooms.remove(room)

    def room_of(self, name: str, node_id: str, resources: Mapping[str, float]) -> Room | None:
        """None on a node that is not there any more."""
        return next((room for room in self.rooms if (room.group, room.node.id) == (name, node_id)), None)

    def release_all_but(self, names: Collection[str]) -> None:
        self.rooms = [room for room in self.rooms if room.group in names]


@dataclass
class FakeMemory:
    """As Memory."""

    counts: dict[str, int] = field(default_factory=dict)

    def save(self, config: FleetConfig, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)


class FakeRoom(Room):
    """`group` is the name of whom it is for."""

    def options(self) -> dict[str, object]:
        return {}


@dataclass
class World:
    """All processes that were ever started, by id."""

    processes: dict[str, list["FakeProcess"]] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    """Id -> why it does not start."""
    load: WorkerLoad | None = None
    """What every worker says of itself."""
    said: list[str] = field(default_factory=list)
    """By controllers."""

    def last(self, id: str) -> "FakeProcess":
        return self.processes[id][-1]

    @property
    def workers(self) -> list[WorkerInfo]:
        living = (each for group in self.processes.values() for each in group if not each.end.done() and each.started)
        return [each.info for each in living if isinstance(each.info, WorkerInfo)]


class FakeProcess:
    def __init__(self, world: World, id: str, role: str, tag: Tag) -> None:
        self.world, self.id, self.role, self.tag = world, id, role, tag
        self.incarnation = len(world.processes.setdefault(id, [])) + 1
        world.processes[id].append(self)
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.started = False
        self.told: list[tuple[str, object]] = []
        self.info: Any = Endpoints("127.0.0.1", 8000, 8001, 8002)
        if role != "router":
            self.info = worker_info(id, self.incarnation, (role,))

    async def start(self) -> Any:
        if self.id in self.world.refuse:
            raise Unavailable(self.world.refuse[self.id])
        self.started = True
        return self.info

    async def ended(self) -> End:
        return await asyncio.shield(self.end)

    async def stop(self, drain_s: float = 0.0) -> None:
        self.told.append(("stop", drain_s))
        self.die("it was stopped")

    def die(self, reason: str, **how: bool) -> None:
        if not self.end.done():
            self.end.set_result(End(reason, **how))

    async def call(self, method: str, *args: Any) -> Any:
        self.told.append((method, *args))
        if method == "drain":
            self.die("it was drained", wanted=True)
        elif method == "change_role":
            self.tag = args[1]
            self.end = asyncio.get_running_loop().create_future()
            self.info = replace(self.info, incarnation=self.info.incarnation + 100, roles=(args[0],))
            return self.info
        elif method == "status":
            return self._status()
        elif method == "metrics":
            return ""
        return None

    def _status(self) -> ServiceStatus:
        known = {told[1] for told in self.told if told[0] == "add_worker"}
        infos = [info for info in self.world.workers if info.address in known]
        peers = tuple(PeerStatus(info.id, info.incarnation, True) for info in infos)
        load = self.world.load
        workers = tuple(WorkerStatus(info, "ready", load=load, peers=peers) for info in infos)
        return ServiceStatus(True, workers=workers)


@dataclass
class Adoptable:
    """In the place of a process that was made to adopt another one: that one, from then on."""

    other: Any = None

    def adopt(self, actor: Any) -> None:
        self.other = actor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)


def new_controller(world: World, nodes: FakeNodes, memory: FakeMemory, **values: Any) -> Controller:
    site = Site(b"k" * 16, has_gpus=False, offers_router_node=False, only_node=True)
    return Controller(config_from({**CONFIG, **values}), site, nodes, memory, world.said.append)  # type: ignore[arg-type]


@asynccontextmanager
async def running(controller: Controller) -> AsyncIterator[Controller]:
    task = asyncio.create_task(controller.run())
    try:
        yield controller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await controller.stop(0.0)
        assert not controller.nodes.rooms, "all room is given back"  # type: ignore[attr-defined]


@asynccontextmanager
async def fleet(
    monkeypatch: pytest.MonkeyPatch, nodes: FakeNodes | None = None, **values: Any
) -> AsyncIterator[tuple[Controller, World]]:
    world = World()

    def process(id: str, recipe: Recipe, options: Mapping[str, object]) -> FakeProcess | Adoptable:
        return FakeProcess(world, id, recipe.role, recipe.tag) if options else Adoptable()

    monkeypatch.setattr(module, "model_facts", lambda config: ModelFacts(config.model, "text"))
    monkeypatch.setattr(module, "router_process", lambda recipe, args, options: process("router-0", recipe, options))
    monkeypatch.setattr(Recipe, "worker", lambda recipe, id, options: process(id, recipe, options))
    monkeypatch.setattr(module, "process_of", lambda actor: actor)
    monkeypatch.setattr(module, "READY_POLL_S", 0.0)
    monkeypatch.setattr(lives, "PLACE_AGAIN_S", 0.0)
    async with running(new_controller(world, nodes or FakeNodes(), FakeMemory(), **values)) as controller:
        yield controller, world


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def ready(controller: Controller) -> set[str]:
    return {id for id, place in controller.places.items() if place.phase is Phase.READY}


async def lose(controller: Controller) -> None:
    """As if its process were killed: nobody is told, nothing is given back."""
    controller.leave()
    tasks = [life.task for life in controller.lives.values() if life.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    controller.lives.clear()


def found(world: World, stages: Mapping[str, Stage] | None = None, node: str = "n") -> list[Found]:
    """The last process of each place, as it describes itself."""
    every = []
    for id, group in world.processes.items():
        process = group[-1]
        stage = (stages or {}).get(id, Stage.ENDED if process.end.done() else Stage.RUNNING)
        info = None if stage in (Stage.ENDED, Stage.STARTING) else process.info
        name = id if len(group) == 1 else f"{id}.{len(group)}"
        every.append(Found(name, process, Description(process.tag, stage, info, node, b"")))
    return every
