"""Two router processes in front of the same two worker processes: same view, same answers, and one may be killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.test_workers import KEY, Process, processes, prompt
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow(seconds=23)

WAIT_S = 60.0


@dataclass
class Router:
    """A router process that said that it is ready."""

    process: "subprocess.Popen[str]"
    url: str
    admin: str

    def complete(self, tokens: list[int], max_tokens: int) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": tokens, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        answered = httpx.post(f"{self.url}/v1/completions", json=body | {"logprobs": 0}, timeout=WAIT_S)
        choice: dict[str, Any] = answered.raise_for_status().json()["choices"][0]
        return choice

    def prefixes(self) -> dict[str, Any]:
        key = {"authorization": f"Bearer {KEY}"}
        report: dict[str, Any] = httpx.get(f"{self.admin}/admin/prefixes", headers=key).raise_for_status().json()
        return report

    def views(self) -> dict[str, tuple[str, int]]:
        """Worker -> digest and size of what this router knows of it; only while it is sure."""
        shown = self.prefixes()["workers"]
        return {w["id"]: (w["digest"], w["tokens"]["device"]) for w in shown if w["synced"] and w["agrees"]}

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = httpx.get(f"{self.url}/status").json()["workers"]
        return workers


@contextmanager
def routers(num: int, workers: list[Process], *flags: str) -> Iterator[list[Router]]:
    command = [sys.executable, "-m", "router", "--model", str(tiny_checkpoint("llama")), "--model-name", "tiny"]
    command += [*"--port 0 --grpc-port 0 --admin-port 0".split(), *flags]
    for worker in workers:
        command += ["--worker", worker.address]
    spawned = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"BATON_CLUSTER_KEY": KEY}, text=True)
        for _ in range(num)
    ]
    try:
        ready = []
        for process in spawned:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            url = f"http://127.0.0.1:{said['port']}"
            ready.append(Router(process, url, f"http://127.0.0.1:{said['admin_port']}"))
        yield ready
    finally:
        for process in spawned:
            process.terminate()
        for process in spawned:
            process.wait(WAIT_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def idle(router: Router) -> bool:
    """No worker holds a page for anybody, or runs anything."""
    loads = [worker["load"] for worker in router.workers()]
    return all(load and not load["running_rows"] and not load["queued_requests"] for load in loads) and all(
        pages == 0 or state in ("free", "cached") for load in loads for state, pages in load["pages_by_state"].items()
    )


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Process]]:
    """A prefill and a decode worker that say what they hold in their sessions and in public, too."""
    with processes("prefill", "decode", flags=("--kv-events", "tcp://127.0.0.1:0")) as workers:
        yield workers


@pytest.mark.parametrize(("source", "salt"), [("session", 0), ("public", 1000)])
async def test_two_routers_share_workers_and_one_is_killed(workers: list[Process], source: str, salt: int) -> None:
    with routers(2, workers, "--kv-events", source) as pair:
        for router in pair:
            await until(lambda router=router: len(router.workers()) == 2 and idle(router))
        prompts = [prompt(80, salt + number) for number in range(6)]
        # Each serves half, and each then finds what the other computed.
        answers = [await asyncio.to_thread(pair[at % 2].complete, tokens, 12) for at, tokens in enumerate(prompts)]
        again = [await asyncio.to_thread(pair[(at + 1) % 2].complete, tokens, 12) for at, tokens in enumerate(prompts)]
        assert [answer["logprobs"]["tokens"] for answer in again] == [
            answer["logprobs"]["tokens"] for answer in answers
        ]
        await until(lambda: len(pair[0].views()) == 2 and pair[0].views() == pair[1].views())
        assert {w["source"] for w in pair[0].prefixes()["workers"]} == {source}
        assert sum(size for _, size in pair[0].views().values()) >= 6 * 80

        await a_killed_router_leaves_nothing_behind(*pair, salt + 99)


async def a_killed_router_leaves_nothing_behind(victim: Router, other: Router, salt: int) -> None:
    """A stream is under way at `victim` when it dies; its client asks `other` and gets the same."""
    tokens = prompt(70, salt)
    body = {"model": "tiny", "prompt": tokens, "max_tokens": 800, "temperature": 0, "ignore_eos": True}
    seen: list[str] = []
    with pytest.raises(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=WAIT_S) as client:
            asked = client.stream("POST", f"{victim.url}/v1/completions", json=body | {"stream": True})
            async with asked as answered:
                async for line in answered.aiter_lines():
                    if line.startswith("data: {"):
                        seen.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
                    if len(seen) == 5:
                        victim.process.send_signal(signal.SIGKILL)
    assert victim.process.wait(WAIT_S) == -signal.SIGKILL and len(seen) >= 5
    killed_s = time.monotonic()
    await until(lambda: idle(other))
    assert time.monotonic() - killed_s < WAIT_S
    answer = await asyncio.to_thread(other.complete, tokens, 200)
    assert answer["text"].startswith("".join(seen)[:100]) and answer["finish_reason"] == "length"
    await until(lambda: idle(other))
    assert len(other.views()) == 2
