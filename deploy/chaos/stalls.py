"""The link between two workers stands still for a while, again and again."""

import asyncio
import random
import time
from collections.abc import Callable

from deploy.chaos.faults import HEALED_WITHIN_S, NOTICED_WITHIN_S, QUIET_S, STAGE_WITHIN_S, STOP_S
from deploy.chaos.link import Link
from deploy.chaos.load import Load
from deploy.chaos.status import Fault, StatusPage, whole


class Stalls:
    """Each stall lasts several times what the watchdog of a transfer waits."""

    def __init__(self, link: Link, page: StatusPage, load: Load, seed: int, say: Callable[[str], None]) -> None:
        self._link = link
        self._page = page
        self._load = load
        self._rng = random.Random(seed)
        self._say = say
        self.faults: list[Fault] = []

    async def run(self, until_s: float) -> None:
        """At least one, then more while the clock shows less than `until_s`. Raises BatonError: one does not heal."""
        while not self.faults or time.monotonic() < until_s:
            await asyncio.sleep(QUIET_S * (0.5 + self._rng.random()))
            await self._stall()

    async def _stall(self) -> None:
        fault = Fault("stall", "prefill-0 to decode-0", "prefill")

        def strike() -> None:
            self._link.stall()
            fault.struck_s = time.monotonic()
            fault.running = dict(self._load.strike(len(self.faults)))
            self.faults.append(fault)

        await self._load.when(fault.stage, STAGE_WITHIN_S, strike)
        self._say(f"the link stands still while {fault.running} run")
        names = {worker["id"] for worker in (await self._page.read())["workers"]}
        try:
            fault.noticed_s = await self._page.until(lambda status: not whole(status), NOTICED_WITHIN_S, fault)
            await asyncio.sleep(max(0.0, fault.struck_s + STOP_S - time.monotonic()))
        finally:
            self._link.resume()
        fault.healed_s = await self._page.until(lambda status: names <= whole(status), HEALED_WITHIN_S, fault)
        self._load.whole = True
        self._say(f"noticed after {fault.noticed_s:.2f} s, healed after {fault.healed_s:.1f} s")
