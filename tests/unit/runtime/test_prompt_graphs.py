"""Steps of one prompt as graphs, on the CPU: a "capture" here is run again at each replay, as a device would."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from engine.attention.triton import TritonAttention
from engine.core.types import KVLayout, Sampling, StepPlan
from engine.runtime.graphs import CapturedStep, GraphMemory
from engine.runtime.kv_pool import KVPool
from engine.runtime.prompt_graphs import MAX_WASTE, SIZES, PromptGraphs
from engine.runtime.rows import RowTable
from engine.runtime.runner import StepRunner
from tests.unit.runtime.tiny import (
    CONFIG,
    GREEDY,
    HEADS,
    MAX_LEN,
    MAX_ROWS,
    PAGE_SIZE,
    SHAPE,
    Planner,
    new_row,
    recompute_greedy,
    tiny_model,
)

LAYOUT = KVLayout("tiny", CONFIG.num_layers, HEADS.num_kv_heads, HEADS.head_dim, PAGE_SIZE, "float32")
CPU = torch.device("cpu")


class Rerun:
    """In the place of a CUDA graph: writes the results where the first run left its own."""

    def __init__(self, step: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._step = step
        self.results = step()

    def replay(self) -> None:
        for kept, new in zip(self.results, self._step(), strict=True):
            kept.copy_(new)


class Memory:
    """In the place of GraphMemory."""

    num_captures = 0

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]], num_warmups: int) -> CapturedStep:
        self.num_captures += 1
        graph = Rerun(step)
        return CapturedStep(cast(Any, graph), *graph.results)


class Rig:
    """A runner whose prompts run as graphs; everything else is launched."""

    def __init__(self, max_tokens: int = MAX_LEN) -> None:
        self.model = tiny_model()
        pool = KVPool(LAYOUT, 64, [CPU])
        self.table = RowTable(MAX_ROWS, MAX_LEN, PAGE_SIZE, pool.filler_page, CPU)
        self.memory, backend = Memory(), TritonAttention(pool.tensors_NL2SKE[0], SHAPE)
        memory = cast(GraphMemory, self.memory)
        self.graphs = PromptGraphs(self.model, backend, self.table, memory, max_tokens)
        self.runner = StepRunner(self.model, backend, self.table, [self.graphs])

    def step(self, plan: StepPlan) -> list[int]:
        return self.runner.start(plan).wait().tokens


def plan_of(start: int, num_new: int) -> StepPlan:
    return StepPlan(0, ids=[0], starts=[start], num_new=[num_new], samples=[True], feedback=[False])


def test_chunks_of_a_prompt_and_its_decode_are_those_of_the_model() -> None:
    rig, planner = Rig(), Planner()
    prompt = torch.randint(0, CONFIG.vocab_size, (41,), generator=torch.Generator().manual_seed(4)).tolist()
    planner.add(new_row(0, prompt))
    planner.extend(0, 0, 17, samples=False)
    assert rig.step(planner.take()) == [-1]
    assert rig.table.tokens_RC[rig.table.slots([0])[0], 17] == prompt[17], "a step that draws nothing writes nothing"
    planner.extend(0, 17, 24)
    tokens = rig.step(planner.take())
    for start in (41, 42):
        planner.extend(0, start, 1, feedback=True)
        tokens += rig.step(planner.take())
    assert tokens == recompute_greedy(rig.model, prompt, 3)
    assert rig.memory.num_captures == 2, "all new, and behind cached tokens"
    planner.remove(0)
    planner.add(new_row(1, prompt[:9]))
    planner.extend(1, 0, 9)
    assert rig.step(planner.take()) == recompute_greedy(rig.model, prompt[:9], 1)
    assert rig.memory.num_captures == 2


def test_a_row_that_does_not_take_the_likeliest_token_draws_from_the_graphs_logits() -> None:
    rig, planner = Rig(), Planner()
    banned = recompute_greedy(rig.model, [5, 6, 7], 1)[0]
    planner.add(new_row(0, [5, 6, 7], Sampling(temperature=0.0, logit_bias=((banned, -100.0),))))
    planner.extend(0, 0, 3)
    [token] = rig.step(planner.take())
    assert token not in (banned, -1) and rig.table.tokens_RC[rig.table.slots([0])[0], 3] == token


def test_log_probabilities_of_the_likeliest_token_are_reported() -> None:
    rig, planner = Rig(), Planner()
    planner.add(new_row(0, [5, 6, 7], Sampling(temperature=0.0, num_logprobs=2)))
    planner.extend(0, 0, 3)
    output = rig.runner.start(planner.take()).wait()
    assert output.logprobs is not None and output.logprobs[0] is not None
    assert [output.logprobs[0].token] == output.tokens and len(output.logprobs[0].top) == 2


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.0, num_prompt_logprobs=0)])
def test_which_steps_are_taken(sampling: Sampling) -> None:
    rig, planner = Rig(), Planner()
    planner.add(new_row(0, [1] * 50, sampling))
    planner.extend(0, 0, 2)
    rig.step(planner.take())
    wants_all_hidden_states = sampling.num_prompt_logprobs is not None
    assert rig.graphs.sizes == [32]
    assert [rig.graphs.takes(plan_of(2, num_new)) for num_new in (2, 32)] == [not wants_all_hidden_states] * 2
    assert not any(rig.graphs.takes(plan_of(2, num_new)) for num_new in (1, 33))
    assert not rig.graphs.takes(StepPlan(0, ids=[0, 1], starts=[2, 2], num_new=[2, 2]))
    assert not Rig(max_tokens=16).graphs.takes(plan_of(0, 8))


def test_no_step_up_to_768_tokens_is_without_a_graph() -> None:
    gaps = [later - earlier for earlier, later in zip((0, *SIZES), SIZES, strict=False)]
    assert all(gap == MAX_WASTE + 1 for gap, size in zip(gaps, SIZES, strict=True) if size <= 768)
