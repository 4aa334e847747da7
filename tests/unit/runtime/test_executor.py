"""The executor against computing every token again from nothing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine.core.types import Sampling, StepPlan
from engine.models.llama import Llama
from engine.runtime.executor import ThreadedExecutor
from tests.unit.runtime.tiny import (
    GREEDY,
    VOCAB,
    Planner,
    make_executor,
    new_row,
    recompute_greedy,
    recompute_logits,
    tiny_model,
)

RNG = torch.Generator().manual_seed(5)


def prompt_of(length: int) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=RNG).tolist()


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_model()


@pytest.fixture(params=["torch", "torch_cpu", "numba"])
def executor(model: Llama, request: pytest.FixtureRequest) -> Iterator[ThreadedExecutor]:
    executor = make_executor(model, request.param)
    yield executor
    executor.close()


def run(executor: ThreadedExecutor, plan: StepPlan) -> list[int]:
    executor.launch(plan)
    output = executor.collect()
    assert output.step_id == plan.step_id and output.step_s > 0
    return output.tokens


@pytest.mark.parametrize("length", [1, 3, 4, 5, 17])
def test_whole_prompt_then_decode(executor: ThreadedExecutor, model: Llama, length: int) -> None:
    prompt, planner, drawn = prompt_of(length), Planner(), []
    planner.add(new_row(7, prompt))
    planner.extend(7, 0, length)
    for step in range(10):
        drawn += run(executor, planner.take())
        planner.extend(7, length + step, 1)
    assert drawn == recompute_greedy(model, prompt, 10)


@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_prompt_in_chunks_draws_once(executor: ThreadedExecutor, model: Llama, chunk: int) -> None:
    prompt, planner = prompt_of(18), Planner()
    planner.add(new_row(1, prompt))
    for start in range(0, 18, chunk):
        num_new = min(chunk, 18 - start)
        last = start + num_new == 18
        planner.extend(1, start, num_new, samples=last)
        tokens = run(executor, planner.take())
        assert tokens == (recompute_greedy(model, prompt, 1) if last else [-1])


def test_steps_in_flight_feed_on_tokens_that_the_host_never_saw(executor: ThreadedExecutor, model: Llama) -> None:
    prompts, planner = {id: prompt_of(3 + 5 * id) for id in range(3)}, Planner(seed=1)
    for id, prompt in prompts.items():
        planner.add(new_row(id, prompt))
        planner.extend(id, 0, len(prompt))
    executor.launch(planner.take())
    for step in range(8):
        for id in reversed(prompts):
            planner.extend(id, len(prompts[id]) + step, 1, feedback=True)
        executor.launch(planner.take())
    first, *later = [executor.collect().tokens for _ in range(9)]
    for id, prompt in prompts.items():
        assert [first[id], *(tokens[2 - id] for tokens in later)] == recompute_greedy(model, prompt, 9)


def test_rows_come_go_and_return_while_others_decode(executor: ThreadedExecutor, model: Llama) -> None:
    """Prefill beside decode; a row that is removed and added again goes on from its own tokens, in other pages."""
    prompts, planner = {id: prompt_of(6 + id) for id in range(4)}, Planner(seed=2)
    drawn: dict[int, list[int]] = {id: [] for id in prompts}

    def step() -> None:
        plan = planner.take()
        for id, token in zip(plan.ids, run(executor, plan), strict=True):
            drawn[id] += [token] if token >= 0 else []

    def extend(id: int) -> None:
        planner.extend(id, len(prompts[id]) + len(drawn[id]) - 1, 1)

    for id in prompts:  # one more row a step
        planner.add(new_row(id, prompts[id]))
        for earlier in range(id):
            extend(earlier)
        planner.extend(id, 0, len(prompts[id]))
        step()
    planner.remove(1)
    planner.remove(2)
    planner.add(new_row(1, prompts[1] + drawn[1], num_prompt=len(prompts[1])))
    planner.extend(1, 0, len(prompts[1]) + len(drawn[1]))
    extend(3)
    step()
    extend(1)
    extend(3)
    step()
    for id, tokens in drawn.items():
        assert tokens == recompute_greedy(model, prompts[id], len(tokens))
    assert [len(tokens) for tokens in drawn.values()] == [4, 5, 2, 3]


def test_every_slot_is_reused(executor: ThreadedExecutor, model: Llama) -> None:
    planner = Planner()
    for id in range(40):
        if id >= 8:
            planner.remove(id - 8)
        prompt = prompt_of(1 + id % 7)
        planner.add(new_row(id, prompt))
        planner.extend(id, 0, len(prompt))
        assert run(executor, planner.take()) == recompute_greedy(model, prompt, 1)


def test_logprobs_are_of_the_raw_distribution(executor: ThreadedExecutor, model: Llama) -> None:
    hot = Sampling(temperature=2.0, top_k=1, presence_penalty=1.0, logit_bias=((5, 3.0),), num_logprobs=3)
    planner, prompts = Planner(), [prompt_of(9), prompt_of(4), prompt_of(6)]
    for id, sampling in enumerate((hot, GREEDY, replace(GREEDY, num_logprobs=0))):
        planner.add(new_row(id, prompts[id], sampling))
        planner.extend(id, 0, len(prompts[id]))
    executor.launch(planner.take())
    output = executor.collect()
    assert output.logprobs is not None and output.logprobs[1] is None
    for row, num_top in ((0, 3), (2, 0)):
        value = output.logprobs[row]
        want = recompute_logits(model, prompts[row])[-1].log_softmax(-1)
        assert value is not None and value.token == output.tokens[row]
        assert value.logprob == pytest.approx(want[value.token].item(), abs=1e-4)
        assert [token for token, _ in value.top] == want.topk(num_top).indices.tolist()
        assert [logprob for _, logprob in value.top] == pytest.approx(want.topk(num_top).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("chunk", [2, 5, 18])
def test_prompt_logprobs_over_chunks(
    executor: ThreadedExecutor, model: Llama, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runtime.logprobs.PROMPT_CHUNK", 4)
    prompt, planner, values = prompt_of(18), Planner(), []
    planner.add(new_row(0, prompt, replace(GREEDY, num_prompt_logprobs=2)))
    planner.add(new_row(1, prompt_of(3)))
    planner.extend(1, 0, 3)
    for start in range(0, 18, chunk):
        planner.extend(0, start, min(chunk, 18 - start), samples=start + chunk >= 18)
        executor.launch(planner.take())
        reported = executor.collect().prompt_logprobs or {}
        assert set(reported) <= {0}
        values += reported.get(0, [])
    want = recompute_logits(model, prompt).log_softmax(-1)
    assert [value.token for value in values] == prompt[1:]
    for position, value in enumerate(values):
        assert value.logprob == pytest.approx(want[position, prompt[position + 1]].item(), abs=1e-4)
        assert [token for token, _ in value.top] == want[position].topk(2).indices.tolist()
    planner.extend(0, 18, 1)
    executor.launch(planner.take())
    assert executor.collect().prompt_logprobs is None


def test_an_error_of_a_step_is_raised_by_its_collect(model: Llama) -> None:
    executor = make_executor(model)
    planner = Planner()
    planner.add(new_row(0, prompt_of(2)))
    planner.extend(0, 0, 2)
    executor.launch(planner.take())
    executor.launch(StepPlan(1, ids=[99], starts=[0], num_new=[1], samples=[True], feedback=[False]))
    assert executor.collect().step_id == 0
    with pytest.raises(KeyError):
        executor.collect()
    executor.close()


def generate_sampled(model: Llama, prompt: list[int], neighbours: int, resume_at: int = -1) -> list[int]:
    """Twelve tokens of one sampled row among others; at `resume_at` it is forgotten and comes back elsewhere."""
    sampling = Sampling(temperature=1.5, top_p=0.95, min_p=0.001, seed=1 << 63, repetition_penalty=1.1)
    executor, planner, tokens = make_executor(model), Planner(seed=neighbours), []
    for id in range(1, neighbours + 1):
        planner.add(new_row(id, prompt_of(id), Sampling(temperature=1.0, top_k=3, seed=id)))
    planner.add(new_row(0, prompt, sampling))
    start, num_new = 0, len(prompt)
    for step in range(12):
        if step == resume_at:
            planner.remove(0)
            planner.add(new_row(0, prompt + tokens, sampling, num_prompt=len(prompt)))
            start, num_new = 0, len(prompt) + len(tokens)
        for id in range(1, neighbours + 1):
            planner.extend(id, 0 if step == 0 else id + step - 1, id if step == 0 else 1)
        planner.extend(0, start, num_new)
        tokens.append(run(executor, planner.take())[-1])
        start, num_new = len(prompt) + step, 1
    executor.close()
    return tokens


def test_sampled_row_is_the_same_alone_in_company_and_resumed(model: Llama) -> None:
    prompt = torch.randint(0, VOCAB, (7,), generator=torch.Generator().manual_seed(3)).tolist()
    alone = generate_sampled(model, prompt, neighbours=0)
    assert len(set(alone)) > 4
    assert generate_sampled(model, prompt, neighbours=6) == alone
    assert generate_sampled(model, prompt, neighbours=2, resume_at=5) == alone
