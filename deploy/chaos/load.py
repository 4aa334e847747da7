"""Clients that never stop asking: closed loop, over both doors, some of them rude."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from deploy.chaos.cases import Case, Seen, difference
from deploy.chaos.doors import Door
from engine.core.errors import BatonError, Overloaded

GRACE_S = 1.0
"""A request without an outcome this long after its deadline hangs."""
LEAVES = 0.08
"""Share of requests whose client goes away in the middle ..."""
LEAVES_WITHIN_S = 0.6
"""... after at most this long."""
STAGES = ("prefill", "handoff", "decode")
"""What a client can tell of a request: no token yet, the first token only, more than that."""

Right = Mapping[tuple[str, str], Sequence[Seen]]
"""By (door, case)."""


@dataclass(slots=True)
class Outcome:
    """One request from its first to its last moment."""

    case: Case
    door: str
    started_s: float
    num_tokens: int = 0
    ended_s: float = 0.0
    result: str = ""
    """right, wrong, failed, refused, left or hung; empty while it runs."""
    detail: str = ""
    last_part_s: float = 0.0
    longest_wait_s: float = 0.0
    """Between two parts of the answer, or for the first."""
    fault: int | None = None
    """Number of the fault that struck while it ran."""
    shaken: bool = False
    """It ran while the service was not whole."""

    @property
    def stage(self) -> str:
        """One of STAGES."""
        return STAGES[0] if not self.num_tokens else STAGES[1] if self.num_tokens <= self.case.n else STAGES[2]


@dataclass(slots=True)
class Load:
    """Mutable: what runs, what is over, and who waits for a stage."""

    cases: Sequence[Case]
    doors: Sequence[Door]
    right: Right
    timeout_s: float
    running: set[int] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    whole: bool = True
    """No fault is being healed."""
    over: bool = False
    """Nobody asks again."""
    _waiters: dict[str, list[Callable[[], None]]] = field(default_factory=dict)

    async def client(self, rng: random.Random) -> None:
        """One request after the other until `over`."""
        while not self.over:
            outcome = Outcome(rng.choice(self.cases), "", time.monotonic(), shaken=not self.whole)
            patience_s = LEAVES_WITHIN_S * rng.random() if rng.random() < LEAVES else None
            await self._one(outcome, rng.choice(self.doors), patience_s)
            if outcome.result == "refused":
                await asyncio.sleep(0.1)

    def strike(self, number: int) -> Counter[str]:
        """A fault strikes now. Returns how many requests run, by stage."""
        self.whole = False
        for index in self.running:
            self.outcomes[index].fault, self.outcomes[index].shaken = number, True
        return Counter(self.outcomes[index].stage for index in self.running)

    async def when(self, stage: str, timeout_s: float, act: Callable[[], None]) -> None:
        """Call `act` in the moment in which a request enters `stage`, or after `timeout_s` without one."""
        acted = asyncio.Event()

        def once() -> None:
            if not acted.is_set():
                acted.set()
                act()

        self._waiters.setdefault(stage, []).append(once)
        try:
            async with asyncio.timeout(timeout_s):
                await acted.wait()
        except TimeoutError:
            once()

    # ------------------------------------------------------------ inside

    async def _one(self, outcome: Outcome, door: Door, patience_s: float | None) -> None:
        outcome.door = door.name
        self.outcomes.append(outcome)
        index = len(self.outcomes) - 1
        self.running.add(index)
        self._entered(outcome.stage)
        seen = [Seen() for _ in range(outcome.case.n)]
        try:
            async with asyncio.timeout(self.timeout_s + GRACE_S):
                stayed = await self._read(outcome, door, seen, patience_s)
            outcome.detail = difference(seen, self.right[door.name, outcome.case.name], whole=stayed)
            outcome.result = "wrong" if outcome.detail else "right" if stayed else "left"
        except TimeoutError:
            outcome.result, outcome.detail = "hung", f"{outcome.num_tokens} tokens came"
        except Overloaded as error:
            outcome.result, outcome.detail = "refused", error.message
        except BatonError as error:
            outcome.result, outcome.detail = "failed", f"{type(error).__name__}: {error.message}"
        finally:
            outcome.ended_s = time.monotonic()
            outcome.shaken |= not self.whole
            self.running.discard(index)

    async def _read(self, outcome: Outcome, door: Door, seen: list[Seen], patience_s: float | None) -> bool:
        """Read to the end. False: the client left after `patience_s`."""
        outcome.last_part_s = outcome.started_s
        try:
            async with (
                asyncio.timeout(patience_s) as patience,
                aclosing(door.ask(outcome.case, seen, self.timeout_s)) as parts,
            ):
                async for num_tokens in parts:
                    self._progress(outcome, num_tokens)
        except TimeoutError:
            if not patience.expired():
                raise
            return False
        return True

    def _progress(self, outcome: Outcome, num_tokens: int) -> None:
        now, stage = time.monotonic(), outcome.stage
        outcome.longest_wait_s = max(outcome.longest_wait_s, now - outcome.last_part_s)
        outcome.last_part_s = now
        outcome.num_tokens += num_tokens
        if outcome.stage != stage:
            self._entered(outcome.stage)

    def _entered(self, stage: str) -> None:
        for act in self._waiters.pop(stage, []):
            act()
