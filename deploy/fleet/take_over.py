"""The controller of a fleet: of a new one, or of one that runs and whose last controller is gone."""

from collections.abc import Callable

from deploy.fleet.config import FleetConfig
from deploy.fleet.controller import Controller
from deploy.fleet.found import find_own
from deploy.fleet.memory import Memory, plain
from deploy.fleet.nodes import RayNodes
from deploy.fleet.recipes import Site
from engine.core.errors import BatonError


def namespace_of(name: str) -> str:
    """Ray's, of that fleet's actors."""
    return f"baton-{name}"


async def take_over(config: FleetConfig, site: Site, memory: Memory, say: Callable[[str], None]) -> Controller:
    """One that goes on with what is there, if anything is.

    The file that the fleet was started with goes on where scaling, roles and updates have led; another one is an
    update. Raises InvalidRequest when the fleet has a controller or another cluster key, or cannot be updated to that.
    """
    namespace = namespace_of(config.name)
    memory.claim()
    found = await find_own(namespace, site.cluster_key)
    memo = memory.load() if found else None
    memory.begin(config)
    nodes = RayNodes(namespace)
    if not found:
        nodes.release_all_but(())
    if memo is None:
        return Controller(config, site, nodes, memory, say)
    last = memo.resumed().model_copy(update={"autoscale": config.autoscale})
    controller = Controller(last, site, nodes, memory, say)
    try:
        controller.adopt(found, memo.counts)
        if memo.given != plain(config):
            controller.update(config)
    except BatonError:
        controller.leave()
        raise
    return controller
