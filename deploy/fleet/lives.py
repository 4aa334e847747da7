"""One place's life: room on a node, a process in it, a role, another one, an end. The controller hears of each."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.fleet.nodes import RayNodes, Room
from deploy.fleet.placing import Taken, choose, lacks
from deploy.fleet.recipes import Recipe
from deploy.launcher import RayProcess
from deploy.supervisor import End
from engine.core.errors import BatonError, Unavailable

PLACE_AGAIN_S = 1.0
"""Nobody says when a node has room again."""
_DRAIN_LATE_S = 10.0
"""After its own time a worker that drains has ended, unless it hangs."""

Launch = Callable[[Mapping[str, object]], RayProcess]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the controller wants to hear, in this order; all are awaited."""

    placed: Callable[[str], Awaitable[None]]
    up: Callable[[str, Any], Awaitable[None]]
    """The process works; with what it says of itself. Again after each change of role."""
    down: Callable[[str, Any], Awaitable[None]]
    """It ended, or is about to serve under another incarnation."""


@dataclass(slots=True)
class Life:
    """Owned by the controller, which runs it as a task and cancels that to end it at once."""

    id: str
    name: str
    """Of the actor."""
    recipe: Recipe
    launch: Launch
    hooks: Hooks
    avoid: str = ""
    """A node's id; it goes there only when it fits nowhere else."""
    last_node: str = ""
    room: Room | None = None
    process: RayProcess | None = None
    info: Any = None
    """What the process says of itself while it works."""
    lack: str = ""
    """What its node would have to have, while none is found."""
    since_s: float = field(default_factory=time.monotonic)
    """Of the search for a node."""
    task: "asyncio.Task[None] | None" = None
    """What the controller runs it in."""
    is_left: bool = False
    """The process goes on without this controller."""
    _next_role: str = ""

    @property
    def taken(self) -> Taken | None:
        """What it has of a node."""
        room = self.room
        return None if room is None else Taken(room.node.id, self._kind, room.resources)

    @property
    def _kind(self) -> str:
        return f"{self.recipe.pool} {self.recipe.version}"

    async def run(self, nodes: RayNodes, all_taken: Callable[[], list[Taken]]) -> End:
        """From the search for room to the end, and why. Nothing of it is left afterwards, however it ends.

        With `room` and `process` it was adopted, and goes on from there; with `info` it works already.
        """
        try:
            if self.process is None:
                self.room = await self._find_room(nodes, all_taken)
                await self.hooks.placed(self.id)
                self.process = self.launch(self.room.options() | {"name": self.name, "lifetime": "detached"})
            info = self.info or await self.process.start()
            while True:
                self.info = info
                await self.hooks.up(self.id, info)
                end = await self.process.ended()
                self.info = None
                await self.hooks.down(self.id, info)
                role, self._next_role = self._next_role, ""
                if not (role and end.wanted):
                    return end
                info = await self.process.call("change_role", role, self.recipe.tag)
        except BatonError as error:
            return End(error.message)
        finally:
            await self._clean_up(nodes)

    async def _find_room(self, nodes: RayNodes, all_taken: Callable[[], list[Taken]]) -> Room:
        need, kind, strategy = self.recipe.need, self._kind, self.recipe.strategy
        while True:
            view, taken = nodes.view(), all_taken()
            others = [node for node in view if node.id != self.avoid]
            chosen = choose(need, kind, others, taken, strategy) or choose(need, kind, view, taken, strategy)
            if chosen is None:
                self.lack = lacks(need, view, taken)
            else:
                node = next(node for node in view if node.id == chosen)
                self.room = Room(node, need.resources, None)  # counts as taken from now on
                try:
                    room = await nodes.reserve(node, need.resources, self.name)
                except Unavailable as error:
                    self.lack, self.avoid = error.message, chosen
                else:
                    self.lack, self.last_node = "", chosen
                    return room
                finally:
                    self.room = None
            await asyncio.sleep(PLACE_AGAIN_S)

    async def _clean_up(self, nodes: RayNodes) -> None:
        process, room = self.process, self.room
        self.process = self.room = None
        if self.is_left:
            return
        try:
            if process is not None:
                await process.stop()
        finally:
            if room is not None:
                nodes.release(room)

    async def drain(self, drain_s: float) -> None:
        """Ask it to leave; `run` ends when it has. A router's answers under way, a worker's requests have `drain_s`."""
        process = self.process
        if process is None:
            return  # it died meanwhile
        try:
            if self.recipe.config is None:
                await process.stop(drain_s)
                return
            await process.call("drain", drain_s)
            async with asyncio.timeout(drain_s + _DRAIN_LATE_S):
                await process.ended()
        except TimeoutError:
            await process.stop()
        except BatonError:
            pass  # it died meanwhile, which `run` sees, too

    async def end_in(self, delay_s: float) -> None:
        """Have the process end itself then, should nobody be there any more who does it."""
        process = self.process
        try:
            if process is not None:
                await process.call("end_in", delay_s)
        except BatonError:
            pass  # it is dead

    async def change_role(self, role: str) -> None:
        """Drain it, then go on with another role and the model that is loaded."""
        self._next_role = role
        await self.drain(self.recipe.drain_s)
