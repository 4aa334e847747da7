"""More clients than pages, and many small requests: clear ends, nothing left behind, no growth.

The full form is two minutes of load and 10,000 requests: BATON_LOAD_S=120 BATON_LOAD_REQUESTS=10000.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator

import grpc
import psutil
import pytest

from deploy.spawned import Service, serve
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, generate
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=45), pytest.mark.timeout(1200)]

LOAD_S = float(os.environ.get("BATON_LOAD_S", "12"))
NUM_REQUESTS = int(os.environ.get("BATON_LOAD_REQUESTS", "2000"))
NUM_CLIENTS = 64
PAGE_BYTES = 3 * 2 * 16 * 2 * 16 * 4
"""Of the tiny Llama at 16 tokens a page."""
NUM_PAGES = 100
"""1,600 tokens: the clients ask for about 10,000 at a time."""
MAX_GROWTH = 1.05
MAX_MEMORY_BYTES = {"Router": 300 << 20, "PrefillWorker": 600 << 20, "DecodeWorker": 600 << 20}
"""Resident; weights and pool of this model are less than a megabyte."""


@pytest.fixture(scope="module")
def small_pool() -> Iterator[Service]:
    with serve(
        *("--model", str(tiny_checkpoint("llama")), "--max-model-len", "512", "--policy", "cost_always_hand_over"),
        *("--kv-memory", str(NUM_PAGES * PAGE_BYTES), "--max-step-tokens", "256"),
    ) as service:
        yield service


async def test_every_request_ends_and_every_page_comes_back(small_pool: Service) -> None:
    """Clients send one request after the other; some leave in the middle of an answer."""
    outcomes: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end_s = loop.time() + LOAD_S

    async def client(stub: InferenceStub, rng: random.Random) -> None:
        while loop.time() < end_s:
            prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 250))]
            call = generate(stub, prompt, temperature=0.0, max_tokens=rng.randrange(1, 60), timeout_s=300)
            try:
                if rng.random() < 0.1:
                    await asyncio.wait_for(call, rng.random())
                else:
                    await call
                outcomes["done"] += 1
            except TimeoutError:
                outcomes["left"] += 1
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1

    async with connect(small_pool.grpc) as channel:
        stub = InferenceStub(channel)
        await asyncio.gather(*(client(stub, random.Random(seed)) for seed in range(NUM_CLIENTS)))
    assert set(outcomes) <= {"done", "left", "RESOURCE_EXHAUSTED"}, outcomes
    assert outcomes["done"] > NUM_CLIENTS, outcomes
    small_pool.wait_idle()


async def test_many_small_requests_grow_nothing(small_pool: Service) -> None:
    """Memory of each process between the first and the last tenth. The pools are full of cached pages before."""
    rng = random.Random(1)

    async def send(stub: InferenceStub, count: int) -> None:
        places = asyncio.Semaphore(16)

        async def one(prompt: list[int]) -> None:
            async with places:
                await generate(stub, prompt, temperature=0.0, max_tokens=4)

        prompts = [[rng.randrange(256) for _ in range(rng.randrange(1, 30))] for _ in range(count)]
        await asyncio.gather(*(one(prompt) for prompt in prompts))

    async with connect(small_pool.grpc) as channel:
        stub = InferenceStub(channel)
        tenth = NUM_REQUESTS // 10
        await send(stub, tenth)
        before = memory(small_pool)
        await send(stub, NUM_REQUESTS - tenth)
    after = memory(small_pool)
    grown = {name: (before[name], after[name]) for name in before if after[name] > MAX_GROWTH * before[name]}
    assert not grown, grown
    for role, limit in MAX_MEMORY_BYTES.items():
        (resident,) = (size for name, size in after.items() if role in name)
        assert resident < limit, (role, resident)
    small_pool.wait_idle()


def memory(service: Service) -> dict[str, int]:
    """Resident bytes of each process of the service that serves requests."""
    found = {}
    for process in service.processes():
        name = process.name() if process.pid == service.process.pid else " ".join(process.cmdline())
        if process.pid == service.process.pid or any(role in name for role in MAX_MEMORY_BYTES):
            found[f"{name} {process.pid}"] = memory_of(process)
    assert len(found) == 1 + len(MAX_MEMORY_BYTES), found
    return found


def memory_of(process: psutil.Process) -> int:
    resident: int = process.memory_info().rss
    return resident
