"""A real service under load while its workers are killed, stopped and started again: tokens, ends and pages."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import aiohttp

from baton.client import AsyncClient
from deploy.chaos.cases import CHUNK, MAX_MODEL_LEN, PAGE, Case, Seen, make_cases
from deploy.chaos.continued import Continued
from deploy.chaos.doors import Door, GrpcDoor, HttpDoor
from deploy.chaos.faults import Chaos
from deploy.chaos.link import Link
from deploy.chaos.load import GRACE_S, Load, Right
from deploy.chaos.oracle import greedy_tokens
from deploy.chaos.report import Report
from deploy.chaos.stalls import Stalls
from deploy.chaos.status import Fault, StatusPage, transports
from deploy.plain import HOST, PlainService, listening_ports, serve_plain
from deploy.spawned import left_of, serve
from engine.core.errors import BatonError

REFERENCE_TIMEOUT_S = 60.0
REFERENCES_AT_ONCE = 4
HAND_OVER = ("--policy", "cost_always_hand_over")
"""Every prompt is to move."""
STALL_KV_MEMORY = "6MiB"
"""One decode worker has the load of two: with fewer pages it seldom has any to pull into, and no stall is felt."""
KINDS_KV_MEMORY = "32MiB"
LINK_HOST = "127.0.0.2"
"""All of 127.0.0.0/8 is this machine."""
IDLE_WITHIN_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class CampaignConfig:
    """What is served, asked and broken."""

    seconds: float = 60.0
    """Of load and faults, without the start and the right answers."""
    stall_s: float = 20.0
    """Of load over a link that stands still now and then, between processes without Ray; 0 leaves it out."""
    kinds: bool = True
    """Whether, in a third part, the only decode worker is killed while a request of each kind decodes there."""
    transport: str = "auto"
    num_prefill: int = 2
    num_decode: int = 2
    num_clients: int = 8
    model: str = "builtin"
    kv_memory: str = "4MiB"
    """Some 40 pages of the built-in model: far fewer than the clients ask for at once."""
    timeout_s: float = 30.0
    """The deadline of each request."""
    seed: int = 0

    def engine_flags(self, kv_memory: str) -> list[str]:
        """Of every worker. In float32, where no two tokens are as likely as each other."""
        numbers = {
            "--page-size": PAGE,
            "--max-step-tokens": CHUNK,
            "--max-model-len": MAX_MODEL_LEN,
            "--kv-memory": kv_memory,
        }
        fixed = ["--model", self.model, "--dtype", "float32", "--device", "cpu"]
        return fixed + [str(word) for pair in numbers.items() for word in pair]

    def flags(self) -> list[str]:
        """Of `baton serve`."""
        workers = ["--prefill", str(self.num_prefill), "--decode", str(self.num_decode)]
        return [*self.engine_flags(self.kv_memory), *workers, "--transport", self.transport, *HAND_OVER]

    def plain_flags(self) -> tuple[list[list[str]], list[str]]:
        """Of serve_plain: peers reach the prefill worker at LINK_HOST, where a link can be put."""
        engine = [*self.engine_flags(STALL_KV_MEMORY), "--transport", "grpc"]
        workers = [["prefill_worker", *engine, "--advertise", LINK_HOST], ["decode_worker", *engine]]
        return workers, ["--model", self.model, "--max-model-len", str(MAX_MODEL_LEN), *HAND_OVER]

    def pair_flags(self) -> tuple[list[list[str]], list[str]]:
        """Of serve_plain: a worker of each role, with pages for all kinds of requests at once."""
        engine = [*self.engine_flags(KINDS_KV_MEMORY), "--transport", self.transport]
        router = ["--model", self.model, "--max-model-len", str(MAX_MODEL_LEN), *HAND_OVER]
        return [["prefill_worker", *engine], ["decode_worker", *engine]], router


def campaign(config: CampaignConfig, say: Callable[[str], None] = lambda line: None) -> Report:
    """One campaign from the start of the service to its end. Raises Unavailable when it does not start."""
    start_s = time.monotonic()
    say("starting the service")
    with serve(*config.flags()) as service:
        say(f"it is ready after {time.monotonic() - start_s:.0f} s")

        def break_workers(page: StatusPage, load: Load) -> Breaker:
            return Chaos(service, page, load, config.seed, say)

        first = _Campaign(config, service, say)
        report = asyncio.run(first.run(break_workers))
    if config.stall_s:
        say("starting processes with a link between them")
        with serve_plain(*config.plain_flags()) as plain:
            report.add(asyncio.run(_stalls(replace(config, seconds=config.stall_s), plain, say, first.right)))
    if config.kinds:
        say("starting processes of which the only decode worker will be killed")
        with serve_plain(*config.pair_flags()) as plain:
            report.continued, wrong = asyncio.run(Continued(plain, say).run())
        for message in wrong:
            report.complain(message)
    report.seconds = time.monotonic() - start_s
    return report


async def _stalls(config: CampaignConfig, plain: PlainService, say: Callable[[str], None], right: Right) -> Report:
    async with Link(LINK_HOST, HOST, listening_ports(plain.worker_pids[0])) as link:

        def break_link(page: StatusPage, load: Load) -> Breaker:
            return Stalls(link, page, load, config.seed, say)

        return await _Campaign(config, plain, say, right).run(break_link)


class Site(Protocol):
    """Where clients connect."""

    @property
    def url(self) -> str:
        """Of HTTP."""

    @property
    def grpc(self) -> str:
        """host:port."""


class Breaker(Protocol):
    """Who breaks things."""

    faults: list[Fault]

    async def run(self, until_s: float) -> None:
        """Fault after fault. Raises BatonError when one does not heal."""


class _Campaign:
    def __init__(
        self, config: CampaignConfig, site: Site, say: Callable[[str], None], right: Right | None = None
    ) -> None:
        """`right` answers are asked for unless some service of the same model gave them before."""
        self.right: Right = right or {}
        self._config = config
        self._site = site
        self._say = say
        self._report = Report()

    async def run(self, breaker_of: Callable[[StatusPage, Load], Breaker]) -> Report:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)))
            client = await stack.enter_async_context(AsyncClient(self._site.grpc))
            (model,) = await client.models()
            doors: list[Door] = [GrpcDoor(client), HttpDoor(session, self._site.url, model.name)]
            cases = make_cases(model.vocab_size, self._config.seed)
            self.right = self.right or await self._right_answers(cases, doors)
            load = Load(cases, doors, self.right, self._config.timeout_s)
            page = StatusPage(session, self._site.url)
            breaker = breaker_of(page, load)
            await page.start_counting()
            start_s = time.monotonic()
            await self._shake(load, breaker, start_s)
            self._report.count(load.outcomes)
            self._report.add_faults(breaker.faults, start_s)
            await self._after(page)
        return self._report

    async def _right_answers(self, cases: list[Case], doors: list[Door]) -> Right:
        """Asked while nothing is broken; greedy ones must be those of transformers."""
        self._say(f"asking for the right answers to {len(cases)} requests")
        right: dict[tuple[str, str], list[Seen]] = {}
        places = asyncio.Semaphore(REFERENCES_AT_ONCE)

        async def ask(door: Door, case: Case) -> None:
            answers = right[door.name, case.name] = [Seen() for _ in range(case.n)]
            async with places:
                async for _ in door.ask(case, answers, REFERENCE_TIMEOUT_S):
                    pass

        plain = [case for case in cases if case.is_plain_greedy]
        oracle = asyncio.create_task(asyncio.to_thread(greedy_tokens, self._config.model, plain))
        await asyncio.gather(*(ask(door, case) for door in doors for case in cases))
        expected = await oracle
        for case, tokens in zip(plain, expected, strict=True):
            if right["grpc", case.name][0].tokens != tokens:
                self._report.counts["wrong_tokens"] += 1
                self._report.complain(f"{case.name}: not the tokens of transformers, without any fault")
        self._report.counts["verified_with_transformers"] = len(plain)
        return right

    async def _shake(self, load: Load, breaker: Breaker, start_s: float) -> None:
        rngs = [random.Random(f"{self._config.seed}/{i}") for i in range(self._config.num_clients)]
        clients = [asyncio.create_task(load.client(rng)) for rng in rngs]
        self._say(f"{len(clients)} clients ask for {self._config.seconds:g} s")
        try:
            await breaker.run(start_s + self._config.seconds)
        except BatonError as error:
            self._report.complain(error.message)
        load.over = True
        # Clients end by themselves: each request has a deadline.
        await asyncio.wait(clients, timeout=self._config.timeout_s + 2 * GRACE_S)
        for client in clients:
            client.cancel()
        for result in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(result, BaseException):
                self._report.complain(f"a client broke: {result!r}")

    async def _after(self, page: StatusPage) -> None:
        """What is left in the service, and what it counted."""
        end_s = time.monotonic() + IDLE_WITHIN_S
        while any((left := left_of(status := await page.read())).values()) and time.monotonic() < end_s:
            await asyncio.sleep(POLL_S)
        report = self._report
        report.counts["hung"] += left["requests"]
        report.counts["leaked_pages"] += left["pages"]
        if any(left.values()):
            report.complain(f"left behind: {status}")
        report.counts["preempted"] = sum(worker["load"]["num_preempted"] for worker in status["workers"])
        report.transport = transports(status)
        for name in ("handoffs", "handoff_failures", "resumed"):
            report.counts[name] = await page.counted(name)
        report.retries = await page.counted_by("retries")
        report.counts["retried"] = report.retries.total()
