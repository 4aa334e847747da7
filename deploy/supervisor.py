"""Keep the processes of a service alive: what ends without being asked to is started again. Knows nothing of Ray."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from engine.core.errors import BatonError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended."""

    reason: str
    """In plain words."""
    wanted: bool = False
    """It was asked to leave, and its place stays empty."""
    signalled: bool = False
    """By a signal, so that what is wanted gone may be its node."""
    unreachable: bool = False
    """Nobody knows whether it ended: its node does not answer."""


class Process(Protocol[T_co]):
    """One process of the service. Each object is started once; a restart is a new object."""

    async def start(self) -> T_co:
        """Start it and wait until it works. Returns what it says of itself. Raises BatonError when it cannot."""

    async def ended(self) -> End:
        """Wait for its end. Returns at once for one that ended earlier."""

    async def stop(self) -> None:
        """End it within about a second and a half, whatever state it is in. Idempotent."""


@dataclass(frozen=True, slots=True)
class Member(Generic[T]):
    """A place in the service that one process after another fills."""

    name: str
    launch: Callable[[], Process[T]]
    on_up: Callable[[T], Awaitable[None]]
    """Awaited after each start, with what the process says of itself."""
    on_down: Callable[[T], Awaitable[None]]
    """Awaited after its end, unless the supervisor itself stopped it, with the same."""


@dataclass(frozen=True, slots=True)
class RestartConfig:
    """A process that dies young is started again after a wait that doubles each time."""

    first_s: float = 0.1
    max_s: float = 10.0
    healthy_after_s: float = 10.0
    """One that lived this long died of something new: the wait starts over."""


@dataclass(frozen=True, slots=True)
class _Running:
    member: Member[Any]
    process: Process[Any]
    info: Any
    group: int
    """Which call of Supervisor.start brought it."""


class Supervisor:
    """Runs members side by side.

    await supervisor.start(members)      # all up, or BatonError and nothing left
    await supervisor.watch()             # for ever: restarts what ends
    await supervisor.stop()
    """

    def __init__(self, say: Callable[[str], None], config: RestartConfig = RestartConfig()) -> None:
        self._say = say
        self._config = config
        self._running: dict[str, _Running] = {}
        self._num_groups = 0

    async def start(self, members: Sequence[Member[Any]]) -> None:
        """Start all side by side and wait until each works. Raises the first BatonError, after stopping the others."""
        self._num_groups += 1
        tasks = [asyncio.ensure_future(self._start_one(member, self._num_groups)) for member in members]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stop()
            raise

    async def watch(self) -> None:
        """Restart whatever ends unasked. Returns when all have left as they were asked to, or by cancellation."""
        async with asyncio.TaskGroup() as group:
            for name in list(self._running):
                group.create_task(self._keep(name))

    async def stop(self) -> None:
        """End what was started last first; members that were started together, side by side. Idempotent."""
        while self._running:
            last = max(running.group for running in self._running.values())
            names = [name for name, running in self._running.items() if running.group == last]
            processes = [self._running.pop(name).process for name in names]
            await asyncio.gather(*(process.stop() for process in processes))

    async def _start_one(self, member: Member[Any], group: int) -> None:
        process = member.launch()
        try:
            info = await process.start()
            await member.on_up(info)
        except BaseException:
            await process.stop()
            raise
        self._running[member.name] = _Running(member, process, info, group)

    async def _keep(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        wait_s = self._config.first_s
        while True:
            up_since_s = clock()
            running = self._running[name]
            end = await running.process.ended()
            self._say(f"{name} ended ({end.reason})" + ("" if end.wanted else "; starting it again"))
            await running.member.on_down(running.info)
            await running.process.stop()
            if end.wanted:
                self._running.pop(name, None)
                return
            if clock() - up_since_s >= self._config.healthy_after_s:
                wait_s = self._config.first_s
            wait_s = await self._restart(running, wait_s)

    async def _restart(self, dead: _Running, wait_s: float) -> float:
        """Try until it is up again. Returns how long to wait if this one dies young, too."""
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._config.max_s)
            try:
                await self._start_one(dead.member, dead.group)
            except BatonError as error:
                self._say(f"{dead.member.name} did not start ({error.message}); next try in {wait_s:.1f} s")
            else:
                return wait_s
