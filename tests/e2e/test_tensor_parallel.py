"""Workers of one, two and four ranks hand prompts to each other, as processes: the tokens are those of transformers."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from deploy.spawned import serve
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, greedy, reference_tokens
from tests.e2e.test_workers import (
    CHUNK,
    KEY,
    PAGE_SIZE,
    ROOT,
    STOP_S,
    Process,
    hand_over,
    prompt,
    ready,
    request,
    sessions,
)
from tests.fakes.checkpoints import reference_model, tiny_checkpoint
from tests.fakes.router_session import join

pytestmark = [pytest.mark.slow(seconds=45), pytest.mark.timeout(300)]

LENGTHS = (1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
DEGREES = {"a": 1, "b": 2, "c": 2, "d": 4}
HANDOFFS = {
    "grpc": (("a", "d"), ("d", "a")),
    "nixl": (("a", "b"), ("b", "a"), ("b", "d"), ("d", "b"), ("b", "c"), ("a", "d"), ("d", "a")),
}
"""By transport. What goes where between unequal ranks is the same for both; contract tests have every case of it."""
IDS = count(1000, 1000)


def folder() -> Path:
    """Norms of queries and keys, and heads for four ranks."""
    return tiny_checkpoint("qwen3", num_attention_heads=8, num_key_value_heads=4)


@cache
def reference(tokens: tuple[int, ...]) -> list[int]:
    return reference_tokens(reference_model(folder()), [list(tokens)], 12)[0]


@contextmanager
def workers(transport: str) -> Iterator[dict[str, str]]:
    """Addresses by name."""
    environment = os.environ | {"BATON_CLUSTER_KEY": KEY, "OMP_NUM_THREADS": "1"}
    spawned = {}
    for name, degree in DEGREES.items():
        if not any(name in pair for pair in HANDOFFS[transport]):
            continue
        command = f"-m prefill_worker --worker-id {name} --tp {degree} --transport {transport} --kv-memory 4MiB"
        command += f" --max-step-tokens {CHUNK} --page-size {PAGE_SIZE} --max-model-len 512 --model {folder()}"
        words = [sys.executable, *command.split()]
        spawned[name] = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
    try:
        yield {name: ready(process).address for name, process in spawned.items()}
    finally:
        for process in spawned.values():
            process.terminate()
        codes = {name: process.wait(STOP_S) for name, process in spawned.items()}
    assert set(codes.values()) == {0}, codes


@pytest.mark.parametrize("transport", HANDOFFS)
async def test_prompts_go_between_workers_of_any_number_of_ranks(transport: str) -> None:
    with workers(transport) as addresses:
        for source, target in HANDOFFS[transport]:
            pair = [Process(None, addresses[name]) for name in (source, target)]  # type: ignore[arg-type]
            async with sessions(*pair) as (p, d):
                await join(p, d)
                assert (p.info.layout.tp_size, d.info.layout.tp_size) == (DEGREES[source], DEGREES[target])
                first, salt = next(IDS), next(IDS)
                asked = [request(first + i, prompt(length, salt)) for i, length in enumerate(LENGTHS)]
                tokens = await hand_over(p, d, *asked)
                for one in asked:
                    assert tokens[one.id] == reference(tuple(one.tokens)), (source, target, len(one.tokens))
                assert d.all("adopted"), "pages moved"
                await asyncio.gather(p.idle(), d.idle())


async def test_a_service_whose_decode_workers_have_more_ranks_than_its_prefill_workers() -> None:
    prompts = [prompt(length, salt=3) for length in LENGTHS]
    flags = f"--max-model-len 512 --kv-memory 8MiB --decode-tp 2 --policy cost_always_hand_over --model {folder()}"
    with serve(*flags.split()) as service:
        layouts = {worker["id"]: worker["layout"]["tp_size"] for worker in service.workers()}
        assert layouts == {"prefill-0": 1, "decode-0": 2}
        async with connect(service.grpc) as channel:
            answers = await greedy(InferenceStub(channel), prompts, 12, at_once=4)
        assert [answer.tokens for answer in answers] == [reference(tuple(tokens)) for tokens in prompts]
        assert {answer.decode_worker for answer in answers} == {"decode-0"}
        service.wait_idle()
