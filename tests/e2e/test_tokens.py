"""The right tokens, through separate prefill and decode processes, for each architecture."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.plain import serve_plain
from deploy.spawned import Site
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, generate, greedy, reference_tokens
from tests.fakes.checkpoints import ARCHITECTURES, reference_model, tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=55), pytest.mark.timeout(300)]

PAGE, CHUNK, NUM_NEW = 16, 64, 12
NUM_PAGES = 56
"""Far too few for 16 of the prompts at once."""
NUM_GROWING, GROWING_LENGTH, NUM_GROWN = 12, 20, 80
"""12 x 100 tokens need 84 pages; the prompts alone 24."""
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 79, 80, 81, 127, 128, 129, 191, 192, 193, 257)


@dataclass(frozen=True)
class Case:
    service: Site
    prompts: list[list[int]]
    expected: list[list[int]]
    growing: list[list[int]]
    grown: list[list[int]]


@contextmanager
def serve_split(folder: Path, page_bytes: int) -> Iterator[Site]:
    """A prefill and a decode worker with a small pool each."""
    model = ["--model", str(folder), "--max-model-len", "512"]
    sizes = {"--page-size": PAGE, "--kv-memory": NUM_PAGES * page_bytes, "--max-step-tokens": CHUNK}
    engine = [*model, *(str(word) for pair in sizes.items() for word in pair)]
    workers = [["prefill_worker", *engine], ["decode_worker", *engine]]
    with serve_plain(workers, [*model, "--policy", "cost_always_hand_over"]) as plain:
        plain.wait_whole()
        yield plain


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    folder = tiny_checkpoint(request.param)
    model = reference_model(folder)
    rng = random.Random(request.param)
    prompts = [[rng.randrange(model.config.vocab_size) for _ in range(length)] for length in LENGTHS]
    expected = [reference_tokens(model, [prompt], NUM_NEW)[0] for prompt in prompts]
    growing = [[rng.randrange(model.config.vocab_size) for _ in range(GROWING_LENGTH)] for _ in range(NUM_GROWING)]
    grown = reference_tokens(model, growing, NUM_GROWN)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    page_bytes = config.num_hidden_layers * 2 * PAGE * config.num_key_value_heads * head_dim * 4
    with serve_split(folder, page_bytes) as service:
        yield Case(service, prompts, expected, growing, grown)


async def test_cold_then_with_prefix_hits(case: Case) -> None:
    async with connect(case.service.grpc) as channel:
        stub = InferenceStub(channel)
        cold = await greedy(stub, case.prompts, NUM_NEW, at_once=16)
        assert [answer.tokens for answer in cold] == case.expected
        assert {(answer.prefill_worker, answer.decode_worker) for answer in cold} == {("prefill-0", "decode-0")}
        warm = []
        for prompt in case.prompts:
            warm += await greedy(stub, [prompt] * 2, NUM_NEW, at_once=1)
        assert [answer.tokens for answer in warm[::2]] == case.expected
        assert [answer.tokens for answer in warm[1::2]] == case.expected
        # The same prompt again finds every full page but the one with its last token.
        assert [answer.cached_tokens for answer in warm[1::2]] == [
            (len(prompt) - 1) // PAGE * PAGE for prompt in case.prompts
        ]


async def test_rows_that_outgrow_the_pool_are_computed_again(case: Case) -> None:
    """The prompts fit side by side, their answers do not: somebody must give way, and nobody's tokens may change."""
    async with connect(case.service.grpc) as channel:
        answers = await greedy(InferenceStub(channel), case.growing, NUM_GROWN, at_once=len(case.growing))
    assert [answer.tokens for answer in answers] == case.grown
    case.service.wait_idle()
    assert sum(worker["load"]["num_preempted"] for worker in case.service.workers()) > 0, "the pool was large enough"


async def test_several_sequences_of_one_prompt(case: Case) -> None:
    async with connect(case.service.grpc) as channel:
        stub = InferenceStub(channel)
        for prompt, expected in list(zip(case.prompts, case.expected, strict=True))[-6:]:
            answers = await generate(stub, prompt, n=3, temperature=0.0, max_tokens=NUM_NEW)
            assert [answer.tokens for answer in answers] == [expected] * 3


async def test_aborted_neighbours_change_nothing(case: Case) -> None:
    async with connect(case.service.grpc) as channel:
        stub = InferenceStub(channel)

        async def aborted(prompt: list[int]) -> None:
            task = asyncio.ensure_future(generate(stub, prompt[::-1], temperature=0.0, max_tokens=200))
            await asyncio.wait([task], timeout=0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        aborts = asyncio.gather(*(aborted(prompt) for prompt in case.prompts))
        answers = await greedy(stub, case.prompts, NUM_NEW, at_once=16)
        await aborts
        assert [answer.tokens for answer in answers] == case.expected
