"""One request of each kind goes on with the same tokens after the worker that decoded it was killed."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import aiohttp

from baton.client import AsyncClient
from deploy.chaos.cases import Case, Seen, difference, make_kinds
from deploy.chaos.doors import Door, GrpcDoor, HttpDoor
from deploy.chaos.status import StatusPage
from deploy.plain import PlainService
from engine.core.errors import BatonError

TIMEOUT_S = 60.0
ROUNDS = 10
"""On a machine that starves, the first of the requests may be over before the last one decodes: then all once more."""


@dataclass(slots=True)
class _Asked:
    """One request under way."""

    case: Case
    door: Door
    answers: list[Seen] = field(default_factory=list)
    num_tokens: int = 0
    before: int = 0
    """Of those, before the kill."""
    over: bool = False
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.case.name} over {self.door.name}"

    @property
    def decodes(self) -> bool:
        """It has more than its first tokens, which come from the prefill worker, and lacks some."""
        return self.num_tokens > 2 * self.case.n and not self.over


class Continued:
    """The decode worker of a pair is killed in the moment in which every request decodes there."""

    def __init__(self, plain: PlainService, say: Callable[[str], None]) -> None:
        """`plain` is a prefill worker, a decode worker and a router."""
        self._plain = plain
        self._say = say
        self._killed = False

    async def run(self) -> tuple[dict[str, int], list[str]]:
        """Tokens that came after the kill, by request, and what is wrong in words."""
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)))
            client = await stack.enter_async_context(AsyncClient(self._plain.grpc))
            (model,) = await client.models()
            doors: list[Door] = [GrpcDoor(client), HttpDoor(session, self._plain.url, model.name)]
            page = StatusPage(session, self._plain.url)
            cases = make_kinds(model.vocab_size)
            right = await self._ask(cases, doors)
            await page.start_counting()
            self._killed, asked = False, []
            for _ in range(ROUNDS):
                asked = await self._ask(cases, doors, kill=True)
                if self._killed:
                    break
            resumed = await page.counted("resumed")
        wrong = [*self._wrong(asked, right), *([] if resumed >= len(asked) else [f"only {resumed} were resumed"])]
        self._say(f"{resumed} requests were resumed when their decode worker was killed")
        return {one.name: one.num_tokens - one.before for one in asked}, wrong

    def _wrong(self, asked: list[_Asked], right: list[_Asked]) -> list[str]:
        if not self._killed:
            return [f"in {ROUNDS} rounds the kinds of requests never decoded all at once"]
        wrong = []
        for one, other in zip(asked, right, strict=True):
            what = one.error or other.error or difference(one.answers, other.answers, whole=True)
            if not what and one.num_tokens == one.before:
                what = "nothing came after the kill"
            if what:
                wrong.append(f"{one.name}, decode worker killed after {one.before} tokens: {what}")
            if one.case.options.get("stop") and other.answers[0].finish != "stop":
                wrong.append(f"{one.name}: the right answer does not end by its stop string")
        return wrong

    async def _ask(self, cases: list[Case], doors: list[Door], *, kill: bool = False) -> list[_Asked]:
        """Everything at once, to the end."""
        asked = [_Asked(case, door, [Seen() for _ in range(case.n)]) for case in cases for door in doors]

        async def read(one: _Asked) -> None:
            try:
                async with aclosing(one.door.ask(one.case, one.answers, TIMEOUT_S)) as parts:
                    async for num_tokens in parts:
                        one.num_tokens += num_tokens
                        if kill and not self._killed and all(each.decodes for each in asked):
                            self._kill(asked)
            except BatonError as error:
                one.error = f"{type(error).__name__}: {error.message}"
            one.over = True

        async with asyncio.TaskGroup() as group:
            for one in asked:
                group.create_task(read(one))
        return asked

    def _kill(self, asked: list[_Asked]) -> None:
        self._killed = True
        os.kill(self._plain.worker_pids[1], signal.SIGKILL)
        for one in asked:
            one.before = one.num_tokens
