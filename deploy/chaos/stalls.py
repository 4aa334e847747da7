"""The link between two workers stands still for a while, again and again."""

import asyncio
import random
import time
from collections.abc import Callable

from deploy.chaos.faults import HEALED_WITHIN_S, NOTICED_WITHIN_S, QUIET_S, STAGE_WITHIN_S, STOP_S, over
from deploy.chaos.link import Link
from deploy.chaos.load import Load
from deploy.chaos.status import Fault, StatusPage, whole

FELT_WITHIN_S = 10.0


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
        """More and more, until the clock shows `until_s` and a handoff was broken.

        Raises BatonError when one is not noticed or does not heal, or no handoff was broken within PATIENCE_S more.
        """
        while not await over(until_s, self._broken, "broke a handoff"):
            await asyncio.sleep(QUIET_S * (0.5 + self._rng.random()))
            await self._stall()

    async def _broken(self) -> int:
        return await self._page.counted("handoff_failures")

    async def _stall(self) -> None:
        fault = Fault("stall", "prefill-0 to decode-0", "prefill")

        def strike() -> None:
            self._link.stall()
            fault.struck_s = time.monotonic()
            fault.running = dict(self._load.strike(len(self.faults)))
            self.faults.append(fault)

        await self._load.when(fault.stage, STAGE_WITHIN_S, strike)
        self._say(f"the link stands still while {fault.running} run")
        workers = {worker["id"]: worker for worker in (await self._page.read())["workers"]}
        fault.pages = workers["decode-0"]["load"]["pages_by_state"]
        try:
            if not await self._felt(fault):
                return
            limit_s = fault.felt_s + NOTICED_WITHIN_S
            fault.noticed_s = await self._page.until(lambda status: not whole(status), limit_s, fault)
            await asyncio.sleep(max(0.0, fault.struck_s + STOP_S - time.monotonic()))
        finally:
            self._link.resume()
        fault.healed_s = await self._page.until(lambda status: workers.keys() <= whole(status), HEALED_WITHIN_S, fault)
        self._load.whole = True
        felt = f"a read met it after {fault.felt_s:.2f} s"
        self._say(f"{felt}, noticed after {fault.noticed_s:.2f} s, healed after {fault.healed_s:.1f} s")

    async def _felt(self, fault: Fault) -> bool:
        """Wait for a read to meet the stall. False: nobody had pages to pull within FELT_WITHIN_S."""
        try:
            async with asyncio.timeout(FELT_WITHIN_S):
                await self._link.felt()
        except TimeoutError:
            self._load.whole = True
            self._say(f"no read met it in {FELT_WITHIN_S:g} s")
            return False
        fault.felt_s = time.monotonic() - fault.struck_s
        return True
