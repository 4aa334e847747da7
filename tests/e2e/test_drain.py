"""A worker leaves in the middle of answers, or is killed: every client gets the tokens that it would have anyway."""

import asyncio
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from deploy.spawned import BATON, Service, environment, serve
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

NUM_NEW = 700
PROMPT = list(range(3, 60))
# Few candidates each: logits round differently beside other rows, and a draw at the very edge between two of many
# tokens may then fall on either side.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled with penalties": {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 8,
        "seed": 11,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
    },
    "logprobs": {"temperature": 0.7, "top_k": 4, "seed": 5, "logprobs": 3},
    "two": {"n": 2, "temperature": 0.8, "top_k": 4, "seed": 7},
}


@dataclass
class Stream:
    """One sequence while it comes."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    text: str = ""
    finish: int = 0
    decode_worker: str = ""


class Call:
    """A call whose sequences grow in the background."""

    def __init__(self, stub: InferenceStub, n: int = 1, **sampling: Any) -> None:
        self.streams = [Stream() for _ in range(n)]
        wanted = pb.SamplingParams(**({"max_tokens": NUM_NEW, "ignore_eos": True} | sampling))
        self._stub = stub
        self._request = pb.GenerateRequest(tokens=pb.TokenIds(ids=PROMPT), sampling=wanted, n=n)
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for message in self._stub.Generate(self._request, timeout=120.0):
            stream = self.streams[message.index]
            stream.tokens.extend(message.tokens)
            stream.text += message.text
            stream.logprobs += [(entry.token, round(entry.logprob, 3)) for entry in message.logprobs]
            if message.finish:
                stream.finish, stream.decode_worker = message.finish, message.timing.decode_worker


def all_calls(stub: InferenceStub, stop: str = "") -> dict[str, Call]:
    calls = {name: Call(stub, **sampling) for name, sampling in KINDS.items()}
    if stop:
        calls["stop string"] = Call(stub, **KINDS["sampled with penalties"], stop=[stop])
    return calls


def late_words(text: str) -> str:
    """Six characters that come first in the last third of the text: a stop string that is met late."""
    return next(text[at : at + 6] for at in range(len(text) * 2 // 3, len(text)) if text.find(text[at : at + 6]) == at)


async def until(condition: Any, service: Service, timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, service.log.read_text()
        await asyncio.sleep(0.02)


async def expected_of(service: Service) -> tuple[dict[str, Call], str]:
    """The same calls with nobody leaving, and the stop string of the last one."""
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub)
        await asyncio.gather(*(call.task for call in calls.values()))
        stop = late_words(calls["sampled with penalties"].streams[0].text)
        calls["stop string"] = Call(stub, **KINDS["sampled with penalties"], stop=[stop])
        await calls["stop string"].task
    return calls, stop


def check(calls: dict[str, Call], expected: dict[str, Call]) -> None:
    for name, call in calls.items():
        for stream, right in zip(call.streams, expected[name].streams, strict=True):
            assert stream.tokens == right.tokens and len(stream.tokens) > NUM_NEW // 2, name
            assert (stream.text, stream.finish) == (right.text, right.finish), name
            assert [token for token, _ in stream.logprobs] == [token for token, _ in right.logprobs], name
            assert [value for _, value in stream.logprobs] == pytest.approx(
                [value for _, value in right.logprobs], abs=2e-3
            )


def rows(service: Service) -> dict[str, int]:
    return {worker["id"]: worker["load"]["running_rows"] for worker in service.workers() if worker["load"]}


def metrics_of(service: Service) -> str:
    """The router's counters of attempts and retries."""
    with urllib.request.urlopen(service.url + "/metrics", timeout=10) as metrics:
        lines = metrics.read().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith(("baton_router_attempts", "baton_router_retries")))


def process_of(service: Service, worker: str) -> psutil.Process:
    """The process that listens where `worker` does."""
    (port,) = (int(each["address"].rpartition(":")[2]) for each in service.workers() if each["id"] == worker)
    for process in service.processes()[1:]:
        if any(
            each.laddr.port == port and each.status == psutil.CONN_LISTEN
            for each in process.net_connections(kind="tcp")
        ):
            return process
    raise AssertionError(f"nobody listens on {port}")


@pytest.fixture
def three() -> Iterator[Service]:
    """One prefill and two decode workers with a tiny Llama."""
    with serve(
        *("--model", str(tiny_checkpoint("llama")), "--kv-memory", "16MiB"),
        *("--prefill", "1", "--decode", "2"),
    ) as running:
        yield running


async def busiest_in_the_middle(service: Service, calls: dict[str, Call]) -> str:
    """Wait until each sequence is under way; the decode worker with most of them."""
    streams = [stream for call in calls.values() for stream in call.streams]
    await until(lambda: all(len(stream.tokens) > 20 for stream in streams), service)
    busy = rows(service)
    return max((name for name in busy if name.startswith("decode")), key=lambda name: busy[name])


async def test_drain_command_then_sigterm(three: Service) -> None:
    expected, stop = await expected_of(three)
    async with connect(three.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub, stop)
        leaving = await busiest_in_the_middle(three, calls)
        process = process_of(three, leaving)
        command = [BATON, "drain", leaving, "--timeout", "60", "--url", three.url]
        drained = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=100, env=environment(), check=False
        )
        assert drained.returncode == 0, drained.stderr + three.log.read_text()
        assert f"{leaving} is empty and has ended" in drained.stdout
        await until(lambda: not process.is_running(), three)
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)
        assert 'baton_router_attempts_total{route="move"}' in metrics_of(three), drained.stdout
        await until(lambda: len(three.workers()) == 2, three)
        assert f"{leaving} ended (it was drained)" in three.log.read_text()
        three.wait_idle()

        # What is left is the last decode worker: asked to go, it lets its requests end where they are.
        (last,) = [worker["id"] for worker in three.workers() if "decode" in worker["roles"]]
        call = Call(stub, **KINDS["greedy"])
        await until(lambda: len(call.streams[0].tokens) > 20, three)
        process_of(three, last).send_signal(signal.SIGTERM)
        await until(lambda: any(w["state"] == "draining" for w in three.workers()) or call.task.done(), three)
        await call.task
        assert call.streams[0].tokens == expected["greedy"].streams[0].tokens
        # Unless the machine is so busy that the worker seems to hang.
        assert call.streams[0].decode_worker == last or "retries" in metrics_of(three), three.log.read_text()
        await until(lambda: len(three.workers()) == 1, three)
        assert f"{last} ended (it was drained)" in three.log.read_text()


async def test_a_killed_decode_worker_changes_no_token(three: Service) -> None:
    expected, stop = await expected_of(three)
    async with connect(three.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub, stop)
        victim = await busiest_in_the_middle(three, calls)
        before = {worker["id"]: worker["incarnation"] for worker in three.workers()}
        process_of(three, victim).kill()
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)

        def healed() -> bool:
            now = {w["id"]: w["incarnation"] for w in three.workers() if w["state"] == "ready"}
            return len(now) == 3 and now[victim] != before[victim]

        await until(healed, three, 120.0)

        # SIGTERM moves what decodes, too, and the clients that leave free both sides at once.
        calls = all_calls(stub, stop)
        leaving = await busiest_in_the_middle(three, calls)
        process_of(three, leaving).send_signal(signal.SIGTERM)
        await until(lambda: len(three.workers()) == 2, three)
        assert f"{leaving} ended (it was drained)" in three.log.read_text()
        calls["greedy"].task.cancel()
        del calls["greedy"]
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)
        three.wait_idle()
