"""What is done to the worker processes, when, and how long it took until somebody noticed and all was well again."""

import asyncio
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import psutil

from deploy.chaos.load import STAGES, Load
from deploy.spawned import Service
from engine.core.errors import BatonError, NotFound

STOP_S = 2.0
"""How long a stopped process stays so: several times what the router needs to notice."""
POLL_S = 0.02
NOTICED_WITHIN_S = 10.0
HEALED_WITHIN_S = 90.0
QUIET_S = 1.0
"""Between a healed fault and the next."""
STAGE_WITHIN_S = 5.0
KINDS = ("stop", "kill")
ROLES = ("decode", "prefill")


@dataclass(slots=True)
class Fault:
    """One that was done. Filled while it is watched."""

    kind: str
    worker: str
    stage: str
    """What it waited for: some request had just entered it."""
    struck_s: float = 0.0
    running: dict[str, int] = field(default_factory=dict)
    """Requests that ran when it struck, by stage."""
    pages: dict[str, int] = field(default_factory=dict)
    """Pages of that worker by state, as it last reported."""
    noticed_s: float | None = None
    """After the stroke, until the router's status said so."""
    healed_s: float | None = None
    """After the stroke, until every worker was ready and every pair proven again."""

    def as_json(self, start_s: float) -> dict[str, Any]:
        """Times in seconds, that of the stroke since `start_s`."""
        values = asdict(self) | {"struck_s": self.struck_s - start_s}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


class Chaos:
    """Strikes one worker at a time: the next fault waits until the service is whole again."""

    def __init__(
        self, service: Service, session: aiohttp.ClientSession, load: Load, seed: int, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._service = service
        self._session = session
        self._load = load
        self._rng = random.Random(seed)
        self.faults: list[Fault] = []

    async def run(self, until_s: float) -> None:
        """Each kind on each role, then fault after fault while the clock shows less than `until_s`.

        Raises BatonError when one does not heal.
        """
        for kind, role, stage in self._order():
            await asyncio.sleep(QUIET_S * (0.5 + self._rng.random()))
            if len(self.faults) >= len(KINDS) * len(ROLES) and time.monotonic() >= until_s:
                return
            await self._strike(kind, role, stage)

    def _order(self) -> Iterator[tuple[str, str, str]]:
        """Each kind on each role first, then every stage of both in turns."""
        stages = itertools.cycle(STAGES)
        for stage in stages:
            for kind, role in itertools.product(KINDS, ROLES):
                yield kind, role, stage
                stage = next(stages)

    async def _strike(self, kind: str, role: str, stage: str) -> None:
        workers = (await self.status())["workers"]
        names = {worker["id"] for worker in workers}
        worker = self._rng.choice([worker for worker in workers if role in worker["roles"]])
        process = process_at(self._service, worker["address"])
        fault = Fault(kind, worker["id"], stage, pages=worker["load"]["pages_by_state"])
        await self._load.reached(stage, STAGE_WITHIN_S)
        process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        fault.struck_s = time.monotonic()
        fault.running = dict(self._load.strike(len(self.faults)))
        self.faults.append(fault)
        self._say(f"{kind} {worker['id']} while {fault.running} run")
        try:
            fault.noticed_s = await self._until(lambda status: not ready(status, worker), NOTICED_WITHIN_S, fault)
            if kind == "stop":
                await asyncio.sleep(max(0.0, fault.struck_s + STOP_S - time.monotonic()))
        finally:
            if kind == "stop":
                process.send_signal(signal.SIGCONT)
        fault.healed_s = await self._until(lambda status: names <= whole(status), HEALED_WITHIN_S, fault)
        self._load.whole = True
        self._say(f"noticed after {fault.noticed_s:.2f} s, healed after {fault.healed_s:.1f} s")

    async def _until(self, holds: Callable[[dict[str, Any]], bool], timeout_s: float, fault: Fault) -> float:
        while not holds(status := await self.status()):
            if time.monotonic() > fault.struck_s + timeout_s:
                states = {worker["id"]: (worker["state"], worker["detail"]) for worker in status["workers"]}
                raise BatonError(f"{fault.kind} of {fault.worker}: after {timeout_s:g} s the workers are {states}")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - fault.struck_s

    async def status(self) -> dict[str, Any]:
        """The service's /status."""
        async with self._session.get(f"{self._service.url}/status") as response:
            body: dict[str, Any] = await response.json()
            return body


def ready(status: dict[str, Any], worker: dict[str, Any]) -> bool:
    """Whether that incarnation of `worker` gets work."""
    identity = (worker["id"], worker["incarnation"], "ready")
    return identity in {(each["id"], each["incarnation"], each["state"]) for each in status["workers"]}


def whole(status: dict[str, Any]) -> set[str]:
    """Ids of workers, if all are ready and every decode worker can pull from every prefill worker; else none."""
    workers = status["workers"]
    sources = {(worker["id"], worker["incarnation"]) for worker in workers if "prefill" in worker["roles"]}
    for worker in workers:
        peers = {(peer["id"], peer["incarnation"]) for peer in worker["peers"] if peer["ready"]}
        if worker["state"] != "ready" or worker["load"] is None:
            return set()
        if "decode" in worker["roles"] and not sources <= peers:
            return set()
    return {worker["id"] for worker in workers}


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
