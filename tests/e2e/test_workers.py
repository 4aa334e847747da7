"""Two real worker processes and a test in the router's place: right tokens, and no page or process left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from engine.core.messages import Adopt, Cancel, DeliverTicket, Generate, HandoffFailed, Prefill, Release
from engine.core.types import FinishReason, Request, Sampling, TokenLogprob, token_buffer
from tests.fakes.checkpoints import reference_model, tiny_checkpoint
from tests.fakes.router_session import RouterSession, join

pytestmark = pytest.mark.slow(seconds=40)

ROOT = Path(__file__).resolve().parents[2]
PAGE_SIZE, CHUNK = 16, 64
KEY = "a cluster key for tests only"
START_S, STOP_S = 240.0, 60.0
RETRY_IDS = 1_000_000


@dataclass
class Process:
    """A worker process that said that it is ready."""

    process: "subprocess.Popen[str]"
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def spawn(kind: str, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"{kind}_worker", "--kv-memory", "4MiB", "--max-step-tokens", str(CHUNK), *flags]
    environment = os.environ | {"BATON_CLUSTER_KEY": KEY, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)


def ready(process: "subprocess.Popen[str]") -> Process:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"ended with {process.wait()} before it was ready"
    return Process(process, json.loads(line)["address"])


@contextmanager
def processes(*kinds: str, flags: tuple[str, ...] = (), model: Path | None = None) -> Iterator[list[Process]]:
    """Started side by side; each must end by SIGTERM with exit code 0, unless the test ended it."""
    folder = model or tiny_checkpoint("llama")
    spawned = [
        spawn(kind, "--model", str(folder), "--worker-id", f"{kind}-{i}", *flags) for i, kind in enumerate(kinds)
    ]
    try:
        yield [ready(process) for process in spawned]
    finally:
        running = [process for process in spawned if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        codes = []
        for process in running:
            try:
                codes.append(process.wait(STOP_S))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
    assert codes == [0] * len(codes)


@asynccontextmanager
async def sessions(*workers: Process) -> AsyncIterator[list[RouterSession]]:
    opened = [RouterSession(worker.address) for worker in workers]
    try:
        for session in opened:
            await session.open()
        yield opened
    finally:
        for session in opened:
            await session.close()


def prompt(num_tokens: int, salt: int = 0) -> list[int]:
    """Differs from the first token on for every salt."""
    return [(salt * 31 + 7 * i + i * i) % 251 for i in range(num_tokens)]


def request(id: int, tokens: list[int], timeout_s: float = 60.0, **sampling: object) -> Request:
    settings = Sampling(**({"max_tokens": 12, "temperature": 0.0} | sampling))  # type: ignore[arg-type]
    return Request(id, token_buffer(tokens), len(tokens), settings, 0.0, time.monotonic() + timeout_s)


async def hand_over(p: RouterSession, d: RouterSession, *requests: Request) -> dict[int, list[int]]:
    """All tokens of `requests`, prefilled on one worker and decoded on the other, by id.

    Like a router it tries again, under another id, what failed because the peer seemed to hang: on a machine with
    more work than cores it may.
    """
    tokens: dict[int, list[int]] = {}
    attempts = {one.id: one for one in requests}
    while attempts:
        for one in attempts.values():
            p.send(Prefill(one))
            d.send(Adopt(one))
        ids = [one.id for one in attempts.values()]
        await d.until(lambda ids=ids: all(d.finished(id) or d.failed(id) for id in ids))
        again: dict[int, Request] = {}
        for id, one in attempts.items():
            if failures := d.failed(one.id):
                assert failures[0].peer_lost, failures[0].message
                p.send(Cancel(one.id))
                again[id] = replace(one, id=one.id + RETRY_IDS)
                continue
            assert d.finished(one.id)[0].reason is FinishReason.LENGTH
            assert len(p.tokens[one.id]) == 1
            tokens[id] = p.tokens[one.id] + d.tokens[one.id]
        attempts = again
        if again:
            await d.until(lambda: d.all("peers")[-1].ready)
    return tokens


def logprobs_of(id: int, *heard: RouterSession) -> list[TokenLogprob]:
    """Of the last attempt at request `id`, in order."""
    rows = [
        (row_id, value)
        for session in heard
        for frame in session.frames
        for row_id, value in zip(frame.ids, frame.logprobs or [], strict=False)
        if row_id % RETRY_IDS == id and value is not None
    ]
    last = max(row_id for row_id, _ in rows)
    return [value for row_id, value in rows if row_id == last]


async def generate(session: RouterSession, *requests: Request) -> dict[int, list[int]]:
    for one in requests:
        session.send(Generate(one))
    await session.until(lambda: all(session.finished(one.id) for one in requests))
    return {one.id: session.tokens[one.id] for one in requests}


@cache
def _reference_model() -> transformers.PreTrainedModel:
    return reference_model(tiny_checkpoint("llama"))


def reference(tokens: list[int], max_tokens: int = 12) -> list[int]:
    """Greedy tokens of transformers on the same checkpoint."""
    with torch.inference_mode():
        ids = torch.tensor([tokens])
        answer = _reference_model().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
        )
    return [int(token) for token in answer[0, len(tokens) :]]


@pytest.fixture(scope="module", params=["grpc", "nixl"])
def pair(request: pytest.FixtureRequest) -> Iterator[list[Process]]:
    """A prefill and a decode worker that tests of this module share."""
    with processes("prefill", "decode", flags=("--transport", request.param)) as workers:
        yield workers


async def test_handed_over_tokens_are_those_of_transformers(pair: list[Process]) -> None:
    lengths = [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]
    async with sessions(*pair) as (p, d):
        await join(p, d)
        requests = [request(100 + n, prompt(n, salt=n)) for n in lengths]
        tokens = await hand_over(p, d, *requests)
        for one in requests:
            assert tokens[one.id] == reference(list(one.tokens)), len(one.tokens)
        await p.idle()
        await d.idle()


async def test_a_known_prefix_does_not_move_again(pair: list[Process]) -> None:
    shared = prompt(8 * PAGE_SIZE, salt=77)
    async with sessions(*pair) as (p, d):
        await join(p, d)
        await hand_over(p, d, request(1, [*shared, 1, 2, 3]))
        tokens = await hand_over(p, d, request(2, [*shared, 4, 5]))
        (adopted,) = (a for a in d.all("adopted") if a.id % RETRY_IDS == 2)
        assert (adopted.local_pages, adopted.pulled_pages) == (8, 1)
        assert next(s for s in p.all("started") if s.id % RETRY_IDS == 2).cached_tokens == 8 * PAGE_SIZE
        assert tokens[2] == reference([*shared, 4, 5])


async def test_sampled_tokens_and_logprobs_do_not_depend_on_the_path(pair: list[Process]) -> None:
    settings = {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 40,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "min_tokens": 4,
        "num_logprobs": 2,
        "max_tokens": 24,
    }
    async with sessions(*pair) as (p, d):
        await join(p, d)
        ones = [request(10 + i, prompt(40, salt=i), seed=i, **settings) for i in range(4)]
        apart = await hand_over(p, d, *ones)
        whole = await generate(p, *(replace(one, id=one.id + 50) for one in ones))
        for one in ones:
            assert apart[one.id] == whole[one.id + 50]
        by_id = {id: logprobs_of(id, p, d) for id in (10, 60)}
        assert len(by_id[10]) == len(by_id[60]) == 24
        for split, together in zip(by_id[10], by_id[60], strict=True):
            assert split.token == together.token
            assert split.logprob == pytest.approx(together.logprob, abs=1e-4)


async def test_cancel_at_any_point_leaves_nothing_behind(pair: list[Process]) -> None:
    async with sessions(*pair) as (p, d):
        await join(p, d)
        for i in range(12):
            one = request(200 + i, prompt(150, salt=i), max_tokens=40)
            p.send(Prefill(one))
            d.send(Adopt(one))
            if i % 4 == 1:
                await p.until(lambda id=one.id: any(ticket.id == id for ticket in p.all("tickets")))
            elif i % 4 == 2:
                await d.until(lambda id=one.id: any(adopted.id == id for adopted in d.all("adopted")))
            elif i % 4 == 3:
                await d.until(lambda id=one.id: len(d.tokens[id]) > 3)
            p.send(Cancel(one.id))
            d.send(Cancel(one.id))
        await d.until(lambda: all(d.finished(200 + i) for i in range(12)))
        assert {finished.reason for finished in d.all("finished")} == {FinishReason.CANCELLED}
        await p.idle()
        await d.idle()
        tokens = await hand_over(p, d, request(300, prompt(50, salt=5)))
        assert tokens[300] == reference(prompt(50, salt=5))


async def test_a_session_that_ends_frees_its_requests_on_both_workers(pair: list[Process]) -> None:
    async with sessions(*pair) as (p, d), sessions(*pair) as (other_p, other_d):
        await join(other_p, other_d)
        for i in range(4):
            one = request(400 + i, prompt(150, salt=i + 30), max_tokens=200)
            other_p.send(Prefill(one))
            other_d.send(Adopt(one))
        await other_d.until(lambda: bool(other_d.tokens))
        await other_p.close()
        await other_d.close()
        await p.idle()
        await d.idle()


async def test_forged_and_foreign_tickets_are_refused(pair: list[Process]) -> None:
    async with sessions(*pair) as (p, d):
        await join(p, d)
        p.on_frame = lambda frame: None
        p.send(Prefill(request(1, prompt(60, salt=1))))
        await p.until(lambda: any(ticket.last for ticket in p.all("tickets")))
        sealed = p.all("tickets")[-1].ticket
        for id, ticket in ((1, sealed[:-1] + bytes([sealed[-1] ^ 1])), (2, sealed)):
            d.send(Adopt(request(id, prompt(60, salt=1))), DeliverTicket(id, ticket))
        await d.until(lambda: len(d.all("handoff_failed")) == 2)
        messages = {failed.id: failed.message for failed in d.all("handoff_failed")}
        assert "HMAC" in messages[1] and "request 1" in messages[2]
        p.send(Release(1))
        await p.idle()
        await d.idle()


async def test_a_stopped_worker_is_lost_by_its_silence_and_comes_back(pair: list[Process]) -> None:
    _, decode = pair
    async with sessions(decode) as (d,):
        d.client.silence_s = 1.0
        seen = len(d.loads)
        await d.until(lambda: len(d.loads) > seen + 1)  # the wait for a frame under way has the new limit
        decode.process.send_signal(signal.SIGSTOP)
        assert "silent" in (await d.lost()).message
    decode.process.send_signal(signal.SIGCONT)
    async with sessions(*pair) as (p, d):
        await join(p, d)
        assert await hand_over(p, d, request(1, prompt(20))) == {1: reference(prompt(20))}


async def test_a_prefill_worker_dies_and_comes_back_under_its_old_address() -> None:
    with processes("prefill", "decode", flags=("--transport", "grpc")) as (prefill, decode):
        async with sessions(prefill, decode) as (p, d):
            await join(p, d)
            p.on_frame = lambda frame: None
            one = request(1, prompt(200))
            p.send(Prefill(one))
            d.send(Adopt(one), Generate(request(2, prompt(30), max_tokens=60)))
            await p.until(lambda: any(ticket.last for ticket in p.all("tickets")))
            prefill.process.kill()
            await p.lost()

            # Its handoff fails in words, its neighbour goes on, and decode can do the work itself.
            d.send(*(DeliverTicket(1, issued.ticket) for issued in p.all("tickets")))
            await d.until(lambda: bool(d.all("handoff_failed")))
            (failed,) = d.all("handoff_failed")
            assert isinstance(failed, HandoffFailed) and failed.peer_lost
            await d.until(lambda: bool(d.finished(2)))
            assert (await generate(d, request(3, prompt(200))))[3] == reference(prompt(200))

            flags = ("--model", str(tiny_checkpoint("llama")), "--port", str(prefill.port), "--transport", "grpc")
            again = ready(await asyncio.to_thread(spawn, "prefill", *flags))
            try:
                async with sessions(again) as (q,):
                    assert q.info.address == p.info.address and q.info.incarnation != p.info.incarnation
                    await join(q, d)
                    tokens = await hand_over(q, d, request(4, prompt(90, salt=3)))
                    assert tokens[4] == reference(prompt(90, salt=3))
                    await d.idle()
            finally:
                again.process.terminate()
                assert again.process.wait(STOP_S) == 0


def test_a_checkpoint_that_is_not_there_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "decode_worker", "--model", "/no/such/folder"]
    environment = os.environ | {"BATON_CLUSTER_KEY": KEY, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, text=True, timeout=START_S)
    assert ended.returncode == 2
    assert ended.stdout == ""
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "/no/such/folder" in errors[0]
