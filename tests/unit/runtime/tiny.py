"""A tiny random model, an executor over it, and the same answers by computing everything again for every token."""

from array import array

import torch
from torch import Tensor

from engine.attention.base import AttentionShape
from engine.attention.select import make_backend
from engine.core.types import KVLayout, NewRow, Sampling, StepPlan
from engine.models.config import AttentionConfig, ModelConfig
from engine.models.llama import Llama
from engine.models.loader import random_model
from engine.runtime.executor import ThreadedExecutor
from engine.runtime.kv_pool import KVPool
from engine.runtime.rows import RowTable
from engine.runtime.runner import StepRunner
from tests.fakes.dense_attention import DenseAttention

VOCAB, PAGE_SIZE, MAX_ROWS, MAX_LEN = 97, 4, 8, 64
HEADS = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, sliding_windows=(None, None))
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    vocab_size=VOCAB,
    max_position=MAX_LEN,
    attention=HEADS,
    rms_norm_eps=1e-6,
    dtype="float32",
)
SHAPE = AttentionShape(4, 2, 8, softmax_scale=8**-0.5, windows=HEADS.sliding_windows)
GREEDY = Sampling(temperature=0.0)


def tiny_model() -> Llama:
    """Weights large enough that neighbouring logits are far apart, so that rounding cannot change an argmax."""
    model = random_model(CONFIG, dtype=torch.float32, device=torch.device("cpu"), seed=3)
    for layer in model.weights.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            linear.weight_OI.mul_(10)
    model.weights.head_VD.mul_(50)
    return model


def recompute_logits(model: Llama, tokens: list[int]) -> Tensor:
    """logits_TV of every position, from nothing."""

    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(tokens), torch.arange(len(tokens)), DenseAttention(HEADS)))


def recompute_greedy(model: Llama, prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(int(recompute_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def make_runner(model: Llama, backend: str = "auto", num_pages: int = 64) -> StepRunner:
    layout = KVLayout("tiny", CONFIG.num_layers, HEADS.num_kv_heads, HEADS.head_dim, PAGE_SIZE, "float32")
    device = torch.device("cpu")
    pool = KVPool(layout, num_pages, [device])
    table = RowTable(MAX_ROWS, MAX_LEN, PAGE_SIZE, pool.filler_page, device)
    return StepRunner(model, make_backend(backend, pool.tensors_NL2SKE[0], SHAPE), table)


def make_executor(model: Llama, backend: str = "auto") -> ThreadedExecutor:
    return ThreadedExecutor(make_runner(model, backend))


def new_row(id: int, tokens: list[int], sampling: Sampling = GREEDY, num_prompt: int | None = None) -> NewRow:
    return NewRow(id, array("i", tokens), len(tokens) if num_prompt is None else num_prompt, sampling)


class Planner:
    """Writes plans as a scheduler would, one row at a time; pages come from a shuffled deck."""

    def __init__(self, seed: int = 0, num_pages: int = 64) -> None:
        self._deck = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
        self._pages: dict[int, list[int]] = {}
        self.plan = StepPlan(0)

    def add(self, row: NewRow) -> None:
        self.plan.added.append(row)
        self._pages[row.id] = []

    def remove(self, id: int) -> None:
        self.plan.removed.append(id)
        self._deck += self._pages.pop(id)

    def extend(self, id: int, start: int, num_new: int, *, samples: bool = True, feedback: bool = False) -> None:
        missing = -(-(start + num_new) // PAGE_SIZE) - len(self._pages[id])
        if missing > 0:
            pages = [self._deck.pop() for _ in range(missing)]
            self._pages[id] += pages
            self.plan.new_pages.append((id, pages))
        self.plan.ids.append(id)
        self.plan.starts.append(start)
        self.plan.num_new.append(num_new)
        self.plan.samples.append(samples)
        self.plan.feedback.append(feedback)

    def take(self) -> StepPlan:
        plan, self.plan = self.plan, StepPlan(self.plan.step_id + 1)
        return plan
