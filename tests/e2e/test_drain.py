"""A worker leaves in the middle of answers, or is killed: every client gets the tokens that it would have anyway.

One service for all tests. It starts with three decode workers; who was drained does not come back.
"""

import asyncio
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from baton.cli import app
from deploy.spawned import Service, serve
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=45), pytest.mark.timeout(600)]

NUM_NEW = 700
PROMPT = list(range(3, 60))
MOVES = 'baton_router_attempts_total{route="move"}'
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
        async for message in self._stub.Generate(self._request, timeout=300.0):
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


async def until(condition: Any, service: Service, timeout_s: float = 240.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, service.log.read_text()
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Expected:
    """What the same calls give with nobody leaving."""

    calls: dict[str, Call]
    stop: str
    """The stop string of the last one."""


async def undisturbed(service: Service) -> Expected:
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub)
        await asyncio.gather(*(call.task for call in calls.values()))
        stop = late_words(calls["sampled with penalties"].streams[0].text)
        calls["stop string"] = Call(stub, **KINDS["sampled with penalties"], stop=[stop])
        await calls["stop string"].task
    return Expected(calls, stop)


def check(calls: dict[str, Call], expected: Expected) -> None:
    for name, call in calls.items():
        for stream, right in zip(call.streams, expected.calls[name].streams, strict=True):
            assert stream.tokens == right.tokens and len(stream.tokens) > NUM_NEW // 2, name
            assert (stream.text, stream.finish) == (right.text, right.finish), name
            assert [token for token, _ in stream.logprobs] == [token for token, _ in right.logprobs], name
            assert [value for _, value in stream.logprobs] == pytest.approx(
                [value for _, value in right.logprobs], abs=2e-3
            )


def rows(service: Service) -> dict[str, int]:
    return {worker["id"]: worker["load"]["running_rows"] for worker in service.workers() if worker["load"]}


def decoders(service: Service) -> list[str]:
    return [worker["id"] for worker in service.workers() if "decode" in worker["roles"]]


def whole(service: Service) -> bool:
    """Each worker is ready, and each decode worker has proven that it can take over from every other."""
    workers = service.workers()
    everybody = {(worker["id"], worker["incarnation"]) for worker in workers}
    for worker in workers:
        proven = {(peer["id"], peer["incarnation"]) for peer in worker["peers"] if peer["ready"]}
        others = everybody - {(worker["id"], worker["incarnation"])}
        if worker["state"] != "ready" or ("decode" in worker["roles"] and not others <= proven):
            return False
    return True


def count(service: Service, name: str) -> float:
    """A counter of the router, over all labels that begin as in `name`."""
    with urllib.request.urlopen(service.url + "/metrics", timeout=30) as metrics:
        lines = metrics.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


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


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One prefill and three decode workers with a tiny Llama."""
    model = ("--model", str(tiny_checkpoint("llama")), "--kv-memory", "16MiB")
    with serve(*model, "--prefill", "1", "--decode", "3") as running:
        yield running


@pytest.fixture(scope="module")
def expected(service: Service) -> Expected:
    return asyncio.run(undisturbed(service))


@asynccontextmanager
async def others(stub: InferenceStub, expected: Expected) -> AsyncIterator[None]:
    """Clients that ask again and again: however late a worker hears that it is to leave, it has something to move."""
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            call = Call(stub, **KINDS["greedy"])
            await call.task
            assert call.streams[0].tokens == expected.calls["greedy"].streams[0].tokens

    clients = [asyncio.create_task(client()) for _ in range(4)]
    try:
        yield
    finally:
        over.set()
    await asyncio.gather(*clients)


async def busiest_in_the_middle(service: Service, calls: dict[str, Call]) -> str:
    """Wait until each sequence is under way; the decode worker with most of them."""
    streams = [stream for call in calls.values() for stream in call.streams]
    await until(lambda: all(len(stream.tokens) > 20 for stream in streams), service)
    busy = rows(service)
    return max((name for name in busy if name.startswith("decode")), key=lambda name: busy[name])


async def has_left(service: Service, worker: str) -> None:
    """Wait until the service has said so and the router has forgotten the worker."""
    said = f"{worker} ended (it was drained)"
    await until(lambda: said in service.log.read_text() and worker not in decoders(service), service)


async def drain(service: Service, worker: str) -> None:
    """By the command, in this process: it begins while what runs now runs."""
    words = ["drain", worker, "--timeout", "240", "--url", service.url]
    drained = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert drained.exit_code == 0, f"{drained.exception!r}\n{service.log.read_text()}"
    assert f"{worker} is empty and has ended" in drained.stdout
    await has_left(service, worker)


async def test_a_killed_decode_worker_changes_no_token(service: Service, expected: Expected) -> None:
    async with connect(service.grpc) as channel:
        calls = all_calls(InferenceStub(channel), expected.stop)
        victim = await busiest_in_the_middle(service, calls)
        before = {worker["id"]: worker["incarnation"] for worker in service.workers()}
        process_of(service, victim).kill()
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)

        def healed() -> bool:
            now = {w["id"]: w["incarnation"] for w in service.workers() if w["state"] == "ready"}
            return now.keys() == before.keys() and now[victim] != before[victim]

        await until(healed, service)
        service.wait_idle()


async def test_sigterm_moves_what_decodes(service: Service, expected: Expected) -> None:
    """Beside a client that leaves, which frees both sides at once."""
    await until(lambda: whole(service), service)
    before = count(service, MOVES)
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub, expected.stop)
        async with others(stub, expected):
            leaving = await busiest_in_the_middle(service, calls)
            process_of(service, leaving).send_signal(signal.SIGTERM)
            await has_left(service, leaving)
            calls.pop("greedy").task.cancel()
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)
        assert count(service, MOVES) > before, service.log.read_text()
        service.wait_idle()


async def test_the_drain_command_moves_what_decodes(service: Service, expected: Expected) -> None:
    await until(lambda: whole(service), service)
    before = count(service, MOVES)
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        calls = all_calls(stub, expected.stop)
        async with others(stub, expected):
            leaving = await busiest_in_the_middle(service, calls)
            process = process_of(service, leaving)
            await drain(service, leaving)
        await asyncio.gather(*(call.task for call in calls.values()))
        check(calls, expected)
        await until(lambda: not process.is_running(), service)
        assert count(service, MOVES) > before, service.log.read_text()
        service.wait_idle()


async def test_the_last_decode_worker_lets_its_requests_end_where_they_are(
    service: Service, expected: Expected
) -> None:
    for spare in decoders(service)[1:]:
        await drain(service, spare)
    (last,) = decoders(service)
    retries = count(service, "baton_router_retries")
    async with connect(service.grpc) as channel:
        call = Call(InferenceStub(channel), **KINDS["greedy"])
        await until(lambda: len(call.streams[0].tokens) > 20, service)
        process_of(service, last).send_signal(signal.SIGTERM)
        await until(lambda: any(w["state"] == "draining" for w in service.workers()) or call.task.done(), service)
        await call.task
        assert call.streams[0].tokens == expected.calls["greedy"].streams[0].tokens
        # Unless the machine is so busy that the worker seems to hang.
        hung = count(service, "baton_router_retries") > retries
        assert call.streams[0].decode_worker == last or hung, service.log.read_text()
        await has_left(service, last)
