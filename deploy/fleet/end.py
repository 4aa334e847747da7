"""`baton down` for a fleet that has no controller."""

import asyncio
from collections.abc import Sequence

from deploy.actors import Endpoints
from deploy.cluster import Cluster
from deploy.door import find as find_door
from deploy.door import withdraw
from deploy.fleet.config import ROUTER_POOL
from deploy.fleet.found import Found, find, process_of
from deploy.fleet.memory import Memory
from deploy.fleet.nodes import RayNodes
from deploy.fleet.take_over import namespace_of
from engine.core.errors import NotFound


def end(name: str, ray_address: str, drain_s: float | None) -> None:
    """End every process of that fleet; answers under way have `drain_s` (None: as its config says).

    Raises NotFound when there is no such fleet, InvalidRequest when it has a controller.
    """
    with Cluster(ray_address, namespace=namespace_of(name)):
        asyncio.run(_end(name, drain_s))


async def _end(name: str, drain_s: float | None) -> None:
    namespace = namespace_of(name)
    memory = Memory(namespace)
    memory.claim()
    memo, found = memory.load(), [each for each in await find(namespace) if each.actor is not None]
    if not found and memo is None:
        raise NotFound(f"no service {name!r} runs on that cluster")
    if drain_s is None:
        drain_s = memo.resumed().routers.drain_s if memo else 0.0
    routers = [each for each in found if each.said is not None and each.said.tag.pool == ROUTER_POOL]
    await _stop(routers, drain_s)
    await _stop([each for each in found if each not in routers], 0.0)
    RayNodes(namespace).release_all_but(())
    memory.clear()
    for each in routers:
        if each.said is not None and isinstance(each.said.info, Endpoints):
            _withdraw(each.said.info.http_port, name)


async def _stop(processes: Sequence[Found], drain_s: float) -> None:
    await asyncio.gather(*(process_of(each.actor).stop(drain_s) for each in processes))


def _withdraw(http_port: int, name: str) -> None:
    try:
        if find_door(http_port).fleet == name:
            withdraw(http_port)
    except NotFound:
        pass  # it was on another machine
