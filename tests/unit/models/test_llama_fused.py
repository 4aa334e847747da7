"""The decoder with fused kernels against the plain one, whole and on two ranks, under Triton's interpreter."""

import threading
from pathlib import Path

import pytest
from torch import Tensor

from engine.core.types import Sampling, StepPlan
from engine.models.base import Collective
from engine.models.llama import Llama
from engine.models.llama_fused import FusedLlama
from engine.runtime import build
from engine.runtime.build import build_engine
from engine.runtime.collective.threads import ThreadRanks
from engine.runtime.config import Parallel
from engine.runtime.runner import PendingStep, StepRunner
from tests.fakes.checkpoints import tiny_checkpoint
from tests.unit.runtime.test_engine import config_of, generate, prompts_of

TURN = threading.Lock()
"""Held by the rank that computes: the interpreter is for one thread at a time."""


class InTurn:
    """A rank that lets go of its turn while it waits for the others."""

    def __init__(self, member: Collective) -> None:
        self.member = member

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        TURN.release()
        try:
            return self.member.all_reduce(x_TD)
        finally:
            TURN.acquire()

    def add_norm(self, x_TD: Tensor, stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        return self.member.add_norm(x_TD, stream_TD, weight_D, eps)

    def all_gather(self, x_SV: Tensor) -> Tensor:
        TURN.release()
        try:
            return self.member.all_gather(x_SV)
        finally:
            TURN.acquire()


class RanksInTurn(ThreadRanks):
    def __init__(self, choice: str, devices: list[object]) -> None:
        super().__init__(len(devices))
        self.members = [InTurn(member) for member in self.members]  # type: ignore[assignment]


class RunnerInTurn(StepRunner):
    def start(self, plan: StepPlan) -> PendingStep:
        with TURN:
            return super().start(plan)


def tokens_of(folder: Path, tp_size: int) -> list[list[int]]:
    """Prompts of more and of fewer tokens than the small products take, then a few steps of decode."""
    engine = build_engine(config_of(folder, parallel=Parallel(tp_size), attention_backend="torch", max_step_tokens=96))
    prompts = prompts_of(folder, [3, 33])
    answers = generate(engine, prompts[:1], Sampling(max_tokens=2, temperature=0.0))
    answers += generate(engine, prompts, Sampling(max_tokens=2, temperature=0.0), first_id=10)
    engine.close()
    return answers


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        pytest.param("qwen2", {}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"head_dim": 64}, marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_the_plain_decoder(
    architecture: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(architecture, num_hidden_layers=1, **options)
    plain = tokens_of(folder, 1)

    def fused(model: Llama) -> FusedLlama:
        return FusedLlama(model.config, model.weights, model.ranks)

    monkeypatch.setattr(build, "_fused", fused)
    monkeypatch.setattr(build, "StepRunner", RunnerInTurn)
    monkeypatch.setattr(build, "open_ranks", RanksInTurn)
    assert tokens_of(folder, 1) == plain
    assert tokens_of(folder, 2) == plain
