"""A sampled request with a seed has one answer, whoever computes it and whatever runs beside it."""

import asyncio
import random

import pytest

from deploy.plain import serve_plain
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import Answer, connect, generate
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=17), pytest.mark.timeout(300)]

SETTINGS: list[dict[str, object]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 0.9, "presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"temperature": 0.8, "logit_bias": {7: 5.0, 9: -100.0}},
]


async def answers(target: str, at_once: int) -> list[list[Answer]]:
    """The same 24 requests on any service, `at_once` of them side by side."""
    rng = random.Random(5)
    places = asyncio.Semaphore(at_once)
    async with connect(target) as channel:
        stub = InferenceStub(channel)

        async def one(index: int, prompt: list[int]) -> list[Answer]:
            async with places:
                settings = SETTINGS[index % len(SETTINGS)]
                return await generate(stub, prompt, n=2, seed=100 + index, max_tokens=24, **settings)

        prompts = [[rng.randrange(256) for _ in range(rng.choice((1, 16, 33, 64, 100)))] for _ in range(24)]
        return list(await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts))))


async def test_disaggregated_equals_colocated() -> None:
    router = ["--model", str(tiny_checkpoint("qwen3")), "--max-model-len", "512"]
    engine = [*router, "--kv-memory", "8MiB"]
    workers = [["prefill_worker", *engine], ["decode_worker", *engine]]
    with serve_plain(workers, [*router, "--policy", "cost_always_hand_over"]) as split:
        split.wait_whole()
        separate = await answers(split.grpc, at_once=8)
        alone = await answers(split.grpc, at_once=1)
    with serve_plain([["decode_worker", *engine]], router) as whole:
        whole.wait_whole()
        together = await answers(whole.grpc, at_once=8)
    tokens = [[answer.tokens for answer in pair] for pair in separate]
    assert [[answer.tokens for answer in pair] for pair in alone] == tokens
    assert [[answer.tokens for answer in pair] for pair in together] == tokens
    assert all(first != second for first, second in tokens), "sequences of one request draw differently"
    assert {answer.prefill_worker for pair in separate for answer in pair} == {"prefill-0"}
    assert {answer.decode_worker for pair in together for answer in pair} == {"decode-0"}
