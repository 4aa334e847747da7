"""What the service says of itself while it is broken: how long until somebody noticed, and until all was well again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from engine.core.errors import BatonError

POLL_S = 0.02


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
    felt_s: float = 0.0
    """After the stroke, until a read met it: of a stall, which nobody can notice before."""
    noticed_s: float | None = None
    """After the stroke, until the router's status said so."""
    slowest_status_s: float = 0.0
    """The longest that the router took to say its status meanwhile: so far off `noticed_s` may be."""
    healed_s: float | None = None
    """After the stroke, until every worker was ready and every pair proven again."""
    same_address: bool | None = None
    """Of a killed worker: its next incarnation listens where it did."""

    def as_json(self, start_s: float) -> dict[str, Any]:
        """Times in seconds, that of the stroke since `start_s`."""
        values = asdict(self) | {"struck_s": self.struck_s - start_s}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


class StatusPage:
    """/status and /metrics of one router."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._before: dict[str, float] = {}

    async def read(self) -> dict[str, Any]:
        """/status as it is now."""
        async with self._session.get(f"{self._url}/status") as response:
            body: dict[str, Any] = await response.json()
            return body

    async def until(self, holds: Callable[[dict[str, Any]], bool], timeout_s: float, fault: Fault) -> float:
        """Seconds from the stroke until the status is so. Raises BatonError when that takes longer than `timeout_s`."""
        while True:
            asked_s = time.monotonic()
            status = await self.read()
            now = time.monotonic()
            fault.slowest_status_s = max(fault.slowest_status_s, now - asked_s)
            if holds(status):
                return now - fault.struck_s
            if now > fault.struck_s + timeout_s:
                states = {worker["id"]: (worker["state"], worker["detail"]) for worker in status["workers"]}
                raise BatonError(f"{fault.kind} of {fault.worker}: after {timeout_s:g} s the workers are {states}")
            await asyncio.sleep(POLL_S)

    async def start_counting(self) -> None:
        """What was counted until now does not count."""
        self._before = await self._samples()

    async def counted(self, name: str) -> int:
        """How much the router's counter of that name has grown."""
        return (await self.counted_by(name))[""]

    async def counted_by(self, name: str) -> Counter[str]:
        """The same by the value of its label."""
        prefix = f"baton_router_{name}_total"
        grown = {key: value - self._before.get(key, 0.0) for key, value in (await self._samples()).items()}
        return Counter(
            {key.removeprefix(prefix).lstrip("/"): int(n) for key, n in grown.items() if key.startswith(prefix)}
        )

    async def _samples(self) -> dict[str, float]:
        async with self._session.get(f"{self._url}/metrics") as response:
            text = await response.text()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {"/".join((sample.name, *sample.labels.values())): sample.value for sample in samples}


def ready(status: dict[str, Any], worker: dict[str, Any]) -> bool:
    """Whether that incarnation of `worker` gets work."""
    identity = (worker["id"], worker["incarnation"], "ready")
    return identity in {(each["id"], each["incarnation"], each["state"]) for each in status["workers"]}


def whole(status: dict[str, Any]) -> set[str]:
    """Ids of workers, if all are ready and every decode worker can pull from every prefill worker; else none."""
    workers = status["workers"]
    sources = {(worker["id"], worker["incarnation"]) for worker in workers if worker["id"].startswith("prefill")}
    for worker in workers:
        peers = {(peer["id"], peer["incarnation"]) for peer in worker["peers"] if peer["ready"]}
        if worker["state"] != "ready" or worker["load"] is None:
            return set()
        if worker["id"].startswith("decode") and not sources <= peers:
            return set()
    return {worker["id"] for worker in workers}


def transports(status: dict[str, Any]) -> str:
    """What pairs of workers that are ready use."""
    return ", ".join(sorted({p["transport"] for worker in status["workers"] for p in worker["peers"] if p["ready"]}))
