"""The load of the router's benchmark, in a process of its own: `python -m bench.router_load '{"url": ...}'`.

Closed loop: `concurrency` clients, each sends its next request when the last one has ended. HTTP bodies and gRPC
messages are made before the first one is sent: then it prints a line and waits for one, so that whoever measures a
process under this load counts the load and nothing else. At the end it prints one JSON object: what each request waited
and what came.
"""

import asyncio
import json
import random
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field

import aiohttp
import grpc

from bench.router_trace import VOCAB_SIZE
from bench.router_workers import KEY
from engine.core.messages import Generate
from engine.core.types import Request, Sampling
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from engine.wire.worker_client import WorkerClient

FIRST_ID = 5
"""Smaller token ids may be special ones."""
WORDS = "river stone window paper morning engine garden silver bridge market winter signal forest copper island letter"
MAX_MESSAGE_BYTES = 64 << 20
CHUNK = b"data: {"
READY = "ready"
"""Printed when everything is made; the first request follows a line from whoever started this."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to send and where."""

    target: str
    """Base URL, or host:port."""
    door: str
    """http (token ids), text (the same over HTTP as words), grpc, or worker: a session straight to one worker."""
    model: str
    num_requests: int
    concurrency: int
    num_prompt: int
    num_new: int
    seed: int


@dataclass(slots=True)
class LoadResult:
    """Filled while it runs."""

    wall_s: float = 0.0
    tokens: int = 0
    chunks: int = 0
    failed: int = 0
    first_error: str = ""
    ttft_ms: list[float] = field(default_factory=list)


Send = Callable[[int, LoadResult], Awaitable[None]]


async def run(spec: LoadSpec) -> LoadResult:
    """Send everything when told to, wait for the last answer."""
    rng = random.Random(spec.seed)
    prompts = [_prompt(spec, rng) for _ in range(spec.num_requests)]
    match spec.door:
        case "http" | "text":
            return await _run_http(spec, prompts)
        case "grpc":
            return await _run_grpc(spec, prompts)
        case "worker":
            return await _run_worker(spec, prompts)
    raise ValueError(f"door {spec.door!r}")


def _prompt(spec: LoadSpec, rng: random.Random) -> "array[int]":
    drawn = array("H", rng.randbytes(2 * spec.num_prompt))
    return array("i", [FIRST_ID + value % (VOCAB_SIZE - FIRST_ID) for value in drawn])


async def _drive(spec: LoadSpec, send: Send) -> LoadResult:
    result, numbers = LoadResult(), iter(range(spec.num_requests))

    async def client() -> None:
        for number in numbers:
            await send(number, result)

    print(READY, flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(spec.concurrency)))
    result.wall_s = time.perf_counter() - begin
    return result


# ------------------------------------------------------------------------------------------------------ HTTP


async def _run_http(spec: LoadSpec, prompts: Sequence["array[int]"]) -> LoadResult:
    words = WORDS.split()
    bodies = []
    for prompt in prompts:
        what = " ".join(words[token % len(words)] for token in prompt) if spec.door == "text" else list(prompt)
        body = {"model": spec.model, "prompt": what, "max_tokens": spec.num_new, "temperature": 0, "stream": True}
        bodies.append(json.dumps(body | {"ignore_eos": True}).encode())
    url, headers = spec.target + "/v1/completions", {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(number: int, result: LoadResult) -> None:
            begin = time.perf_counter()
            async with session.post(url, data=bodies[number], headers=headers) as response:
                if response.status != 200:
                    result.failed += 1
                    result.first_error = result.first_error or f"{response.status}: {(await response.text())[:300]}"
                    return
                await _read(response, begin, result)
            result.tokens += spec.num_new

        return await _drive(spec, send)


async def _read(response: aiohttp.ClientResponse, begin: float, result: LoadResult) -> None:
    first = True
    async for data in response.content.iter_any():
        if first:
            result.ttft_ms.append((time.perf_counter() - begin) * 1e3)
            first = False
        result.chunks += data.count(CHUNK)


# ------------------------------------------------------------------------------------------------------ gRPC


async def _run_grpc(spec: LoadSpec, prompts: Sequence["array[int]"]) -> LoadResult:
    sampling = pb.SamplingParams(max_tokens=spec.num_new, temperature=0.0, ignore_eos=True)
    messages = [pb.GenerateRequest(tokens=pb.TokenIds(ids=prompt), sampling=sampling) for prompt in prompts]
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    async with grpc.aio.insecure_channel(spec.target, options=options) as channel:
        stub = InferenceStub(channel)

        async def send(number: int, result: LoadResult) -> None:
            begin, first = time.perf_counter(), True
            try:
                async for answer in stub.Generate(messages[number]):
                    if first:
                        result.ttft_ms.append((time.perf_counter() - begin) * 1e3)
                        first = False
                    result.chunks += 1
                    result.tokens += len(answer.tokens)
            except grpc.aio.AioRpcError as error:
                result.failed += 1
                result.first_error = result.first_error or f"{error.code()}: {error.details()}"

        return await _drive(spec, send)


async def _run_worker(spec: LoadSpec, prompts: Sequence["array[int]"]) -> LoadResult:
    """One request after the other on a session of our own: what a first token takes without a router."""
    client = WorkerClient(spec.target, KEY.encode(), silence_s=10.0)
    await client.connect()
    frames = client.frames()
    sampling = Sampling(max_tokens=1, temperature=0.0)

    async def send(number: int, result: LoadResult) -> None:
        now, prompt = time.monotonic(), prompts[number]
        begin = time.perf_counter()
        client.send(Generate(Request(number + 1, prompt, len(prompt), sampling, now, now + 60.0)))
        async for frame in frames:
            if number + 1 in frame.ids:
                result.ttft_ms.append((time.perf_counter() - begin) * 1e3)
                result.tokens += 1
                return

    result = await _drive(spec, send)
    await client.close()
    return result


def main(argv: list[str]) -> int:
    """Prints the result. Returns 0."""
    print(json.dumps(asdict(asyncio.run(run(LoadSpec(**json.loads(argv[0])))))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
