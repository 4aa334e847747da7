"""What is done to the worker processes, and when."""

import asyncio
import itertools
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

import psutil

from deploy.chaos.load import STAGES, Load
from deploy.chaos.status import Fault, StatusPage, ready, whole
from deploy.spawned import Service
from engine.core.errors import BatonError, NotFound

STOP_S = 2.0
"""How long a stopped process stays so: several times what the router needs to notice."""
NOTICED_WITHIN_S = 10.0
HEALED_WITHIN_S = 90.0
QUIET_S = 1.0
"""Between a healed fault and the next."""
STAGE_WITHIN_S = 5.0
PATIENCE_S = 120.0
"""Beyond the time for faults, until one has struck a request."""
KINDS = ("stop", "kill")
ROLES = ("decode", "prefill")


class Chaos:
    """Strikes one worker at a time: the next fault waits until the service is whole again."""

    def __init__(self, service: Service, page: StatusPage, load: Load, seed: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._service = service
        self._page = page
        self._load = load
        self._rng = random.Random(seed)
        self.faults: list[Fault] = []

    async def run(self, until_s: float) -> None:
        """Each kind on each role, then fault after fault while the clock shows less than `until_s` or no attempt of any
        request was lost.

        Raises BatonError when one does not heal, or none was lost within PATIENCE_S more.
        """
        for kind, role, stage in self._order():
            await asyncio.sleep(QUIET_S * (0.5 + self._rng.random()))
            if len(self.faults) >= len(KINDS) * len(ROLES) and await over(until_s, self._lost, "retried a request"):
                return
            await self._strike(kind, role, stage)

    async def _lost(self) -> int:
        return (await self._page.counted_by("retries")).total()

    def _order(self) -> Iterator[tuple[str, str, str]]:
        """Each kind on each role first, then every stage of both in turns."""
        stages = itertools.cycle(STAGES)
        for stage in stages:
            for kind, role in itertools.product(KINDS, ROLES):
                yield kind, role, stage
                stage = next(stages)

    async def _strike(self, kind: str, role: str, stage: str) -> None:
        workers = (await self._page.read())["workers"]
        names = {worker["id"] for worker in workers}
        worker = self._rng.choice([worker for worker in workers if worker["id"].startswith(role)])
        process = process_at(self._service, worker["address"])
        fault = Fault(kind, worker["id"], stage, pages=worker["load"]["pages_by_state"])

        def strike() -> None:
            process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            fault.struck_s = time.monotonic()
            fault.running = dict(self._load.strike(len(self.faults)))
            self.faults.append(fault)

        await self._load.when(stage, STAGE_WITHIN_S, strike)
        self._say(f"{kind} {worker['id']} while {fault.running} run")
        try:
            fault.noticed_s = await self._page.until(lambda status: not ready(status, worker), NOTICED_WITHIN_S, fault)
            if kind == "stop":
                await asyncio.sleep(max(0.0, fault.struck_s + STOP_S - time.monotonic()))
        finally:
            if kind == "stop":
                process.send_signal(signal.SIGCONT)
        fault.healed_s = await self._page.until(lambda status: names <= whole(status), HEALED_WITHIN_S, fault)
        if kind == "kill":
            fault.same_address = worker["address"] in [each["address"] for each in (await self._page.read())["workers"]]
        self._load.whole = True
        self._say(f"noticed after {fault.noticed_s:.2f} s, healed after {fault.healed_s:.1f} s")


async def over(until_s: float, hits: Callable[[], Awaitable[int]], words: str) -> bool:
    """Whether the clock shows `until_s` and something was hit. Raises BatonError: nothing was, PATIENCE_S later."""
    now = time.monotonic()
    if now < until_s:
        return False
    if await hits():
        return True
    if now >= until_s + PATIENCE_S:
        raise BatonError(f"no fault {words}, {PATIENCE_S:g} s after the last was due")
    return False


def process_at(service: Service, address: str) -> psutil.Process:
    """The process of `service` that listens on host:port. Raises NotFound."""
    port = int(address.rpartition(":")[2])
    for process in service.processes():
        try:
            listening = [each.laddr.port for each in process.net_connections("tcp") if each.status == "LISTEN"]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended just now
        if port in listening:
            return process
    raise NotFound(f"no process listens on {address}")
