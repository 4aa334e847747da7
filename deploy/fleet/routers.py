"""The routers of a fleet as its controller speaks to them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.actors import Endpoints
from deploy.fleet.placing import Node
from deploy.launcher import RayProcess
from engine.core.errors import NotFound, Unavailable
from engine.core.types import WorkerInfo
from router.api import ServiceStatus

_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class _Joined:
    process: RayProcess
    node: Node
    told: dict[str, WorkerInfo]
    """Workers that it knows of, by address."""


class Routers:
    """Each hears of every worker; one that is down hears of all when it is up again."""

    def __init__(self, say: Callable[[str], None], scheme: str) -> None:
        """`scheme` of their HTTP doors."""
        self._say, self._scheme = say, scheme
        self._joined: dict[str, _Joined] = {}
        self.endpoints: dict[str, Endpoints] = {}
        """By place; kept after an end, for the next start."""

    async def joined(self, id: str, process: RayProcess, endpoints: Endpoints, node: Node) -> None:
        """A router works. One that is older than this controller has heard of workers already."""
        self.endpoints[id] = endpoints
        joined = self._joined[id] = _Joined(process, node, {})
        status = await self._ask(id, "status")
        if isinstance(status, ServiceStatus):
            joined.told.update((worker.info.address, worker.info) for worker in status.workers)

    def left(self, id: str) -> None:
        """It ended."""
        self._joined.pop(id, None)

    def node_of(self, id: str) -> Node | None:
        """Where it is."""
        joined = self._joined.get(id)
        return joined.node if joined else None

    def url(self, id: str) -> str:
        """Of HTTP, as clients reach it."""
        return f"{self._scheme}://{self.address(id, self.endpoints[id].http_port)}"

    def address(self, id: str, port: int) -> str:
        """host:port of a door."""
        host = self.endpoints[id].host
        if host in _EVERYWHERE and (node := self.node_of(id)) is not None:
            host = node.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def ids(self) -> list[str]:
        """Of those that work."""
        return sorted(self._joined)

    async def learn(self, infos: Sequence[WorkerInfo]) -> None:
        """All workers that are up; what a router knows already it is not told again. Others it shall forget."""
        known = {info.address for info in infos}
        for gone in {info.address: info for joined in self._joined.values() for info in joined.told.values()}.values():
            if gone.address not in known:
                await self.forget(gone)
        models = frozenset(info.layout.model_hash for info in infos)
        for id, joined in list(self._joined.items()):
            new = [info for info in infos if info.address not in joined.told]
            if not new:
                continue
            for info in new:
                joined.told[info.address] = info
            await self._tell(id, "allow_models", models)
            for info in new:
                await self._tell(id, "add_worker", info.address)

    async def forget(self, info: WorkerInfo) -> None:
        """That incarnation has ended."""
        for id, joined in list(self._joined.items()):
            if joined.told.pop(info.address, None) is not None:
                await self._tell(id, "remove_worker", info.address)

    async def statuses(self) -> list[ServiceStatus]:
        """Of every router that answers."""
        answers = await asyncio.gather(*(self._ask(id, "status") for id in self.ids))
        return [answer for answer in answers if isinstance(answer, ServiceStatus)]

    async def metrics(self) -> dict[str, str]:
        """Prometheus' text of every router that answers, by place."""
        ids = self.ids
        answers = await asyncio.gather(*(self._ask(id, "metrics") for id in ids))
        return {id: answer for id, answer in zip(ids, answers, strict=True) if isinstance(answer, str)}

    def have_met(self, info: WorkerInfo, statuses: Sequence[ServiceStatus]) -> bool:
        """Every router has a session with it, and every decode worker has said whether it pulls from whom."""
        return bool(statuses) and all(_has_met(info, status) for status in statuses)

    async def _tell(self, id: str, method: str, argument: object) -> None:
        joined = self._joined.get(id)
        if joined is None:
            return
        try:
            await joined.process.call(method, argument)
        except (NotFound, Unavailable) as error:
            self._say(f"{id} was not told ({method}): {error.message}")

    async def _ask(self, id: str, method: str) -> object:
        try:
            return await self._joined[id].process.call(method)
        except Unavailable:
            return None


def _has_met(info: WorkerInfo, status: ServiceStatus) -> bool:
    joined = [worker for worker in status.workers if worker.state in ("ready", "resting")]
    keys = {(worker.info.id, worker.info.incarnation) for worker in joined}
    me = (info.id, info.incarnation)
    if me not in keys:
        return False
    for worker in joined:
        key = (worker.info.id, worker.info.incarnation)
        answered = {(peer.worker_id, peer.incarnation) for peer in worker.peers}
        if "decode" in worker.info.roles and not (keys - {key} if key == me else {me} - {key}) <= answered:
            return False
    return True
