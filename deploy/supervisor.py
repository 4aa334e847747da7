"""Keep the processes of a service alive: what ends without being asked to is started again. Knows nothing of Ray."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from engine.core.errors import BatonError


class Process(Protocol):
    """One process of the service. Each object is started once; a restart is a new object."""

    async def start(self) -> str:
        """Start it and wait until it works. Returns its address. Raises BatonError when it cannot."""

    async def ended(self) -> str:
        """Wait for its end and say in plain words why it came. Returns at once for one that ended earlier."""

    async def stop(self) -> None:
        """End it within about two seconds, whatever state it is in. Idempotent."""


async def _nothing(_address: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Member:
    """A place in the service that one process after another fills."""

    name: str
    launch: Callable[[], Process]
    on_up: Callable[[str], Awaitable[None]] = _nothing
    """Awaited with the address after each start."""
    on_down: Callable[[str], Awaitable[None]] = _nothing
    """Awaited with the address of the process that ended."""


@dataclass(frozen=True, slots=True)
class RestartConfig:
    """A process that dies young is started again after a wait that doubles each time."""

    first_s: float = 0.1
    max_s: float = 10.0
    healthy_after_s: float = 10.0
    """One that lived this long died of something new: the wait starts over."""


class Supervisor:
    """Runs members side by side.

    async with asyncio.TaskGroup() ...
    await supervisor.start(members)      # all up, or BatonError and nothing left
    await supervisor.watch()             # for ever: restarts what ends
    await supervisor.stop()
    """

    def __init__(self, say: Callable[[str], None], config: RestartConfig = RestartConfig()) -> None:
        self._say = say
        self._config = config
        self._running: dict[str, tuple[Member, Process, str]] = {}

    async def start(self, members: list[Member]) -> None:
        """Start all side by side and wait until each works. Raises the first BatonError, after stopping the others."""
        tasks = [asyncio.ensure_future(self._start_one(member)) for member in members]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stop()
            raise

    async def watch(self) -> None:
        """Restart whatever ends. Returns only by cancellation."""
        async with asyncio.TaskGroup() as group:
            for name in list(self._running):
                group.create_task(self._keep(name))

    async def stop(self) -> None:
        """End every process, side by side. Idempotent."""
        running, self._running = self._running, {}
        await asyncio.gather(*(process.stop() for _, process, _ in running.values()))

    async def _start_one(self, member: Member) -> None:
        process = member.launch()
        try:
            address = await process.start()
            self._say(f"{member.name} is up at {address}")
            await member.on_up(address)
        except BaseException:
            await process.stop()
            raise
        self._running[member.name] = (member, process, address)

    async def _keep(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        wait_s = self._config.first_s
        while True:
            up_since = clock()
            member, process, address = self._running[name]
            reason = await process.ended()
            self._say(f"{name} at {address} ended ({reason}); starting it again")
            await member.on_down(address)
            await process.stop()
            if clock() - up_since >= self._config.healthy_after_s:
                wait_s = self._config.first_s
            wait_s = await self._restart(member, wait_s)

    async def _restart(self, member: Member, wait_s: float) -> float:
        """Try until it is up again. Returns how long to wait if this one dies young, too."""
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._config.max_s)
            try:
                await self._start_one(member)
            except BatonError as error:
                self._say(f"{member.name} did not start ({error.message}); next try in {wait_s:.1f} s")
            else:
                return wait_s
