"""Token-exact calls of a running service over gRPC, and the same from transformers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import torch
from transformers import PreTrainedModel

from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub


@dataclass
class Answer:
    """One sequence as its client saw it."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: int = 0
    cached_tokens: int = 0
    prefill_worker: str = ""
    decode_worker: str = ""


async def generate(
    stub: InferenceStub, prompt: Sequence[int], *, n: int = 1, timeout_s: float = 120.0, **sampling: object
) -> list[Answer]:
    """All `n` sequences of one call, in order of index."""
    request = pb.GenerateRequest(
        tokens=pb.TokenIds(ids=prompt), sampling=pb.SamplingParams(ignore_eos=True, **sampling), n=n
    )
    answers = [Answer() for _ in range(n)]
    async for message in stub.Generate(request, timeout=timeout_s):
        answer = answers[message.index]
        answer.tokens.extend(message.tokens)
        answer.text += message.text
        if message.finish:
            answer.finish = message.finish
            answer.cached_tokens = message.usage.cached_tokens
            answer.prefill_worker = message.timing.prefill_worker
            answer.decode_worker = message.timing.decode_worker
    assert all(answer.finish for answer in answers), "a sequence ended without a reason"
    return answers


async def greedy(stub: InferenceStub, prompts: Sequence[Sequence[int]], num_new: int, at_once: int) -> list[Answer]:
    """One greedy sequence for each prompt, at most `at_once` in flight."""
    places = asyncio.Semaphore(at_once)

    async def one(prompt: Sequence[int]) -> Answer:
        async with places:
            (answer,) = await generate(stub, prompt, temperature=0.0, max_tokens=num_new)
            return answer

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


def connect(target: str) -> grpc.aio.Channel:
    """A channel of its own: no state is shared between tests."""
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


@torch.inference_mode()
def reference_tokens(model: PreTrainedModel, prompts: Sequence[list[int]], num_new: int) -> list[list[int]]:
    """Greedy tokens of transformers' own generate, for prompts of one length."""
    output = model.generate(
        torch.tensor(prompts), max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False, eos_token_id=None
    )
    tokens: list[list[int]] = output[:, len(prompts[0]) :].tolist()
    return tokens
