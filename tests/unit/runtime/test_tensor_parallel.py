"""Engines of several ranks, on the CPU: the same tokens as one rank gives, and an end when a rank fails."""

import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.core.errors import CheckpointError, InvalidRequest, RankLost
from engine.core.types import Sampling, StepPlan
from engine.models.checkpoint import SINGLE
from engine.models.loader import Member, load_model, random_model
from engine.models.registry import load_config
from engine.models.weights import Rank
from engine.runtime.build import Engine, build_engine
from engine.runtime.collective.threads import ThreadRanks
from engine.runtime.config import EngineConfig, Formats, Parallel
from engine.runtime.device import Stopwatch
from engine.runtime.executor import RankedExecutor
from engine.runtime.runner import PendingStep, StepRunner
from engine.runtime.warmup import WarmUp, warm_up
from tests.fakes.checkpoints import ARCHITECTURES, tiny_checkpoint
from tests.fakes.dense_attention import DenseAttention
from tests.unit.runtime.test_engine import LENGTHS, NUM_NEW, PAGE, config_of, generate, prompts_of
from tests.unit.runtime.tiny import CONFIG

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
OWN = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
}
"""Biases of every product, tied and own heads, norms of queries and keys, sliding windows."""
MIXED = [
    Sampling(max_tokens=NUM_NEW, temperature=0.0),
    Sampling(max_tokens=NUM_NEW, temperature=1.1, top_p=0.9, seed=4),
    Sampling(max_tokens=NUM_NEW, temperature=0.8, top_k=20, repetition_penalty=1.2, seed=5, num_logprobs=2),
]


def checkpoint(architecture: str, **overrides: object) -> Path:
    return tiny_checkpoint(architecture, **(HEADS | OWN[architecture] | overrides))


def engine_of(folder: Path, tp_size: int, **options: object) -> Engine:
    return build_engine(config_of(folder, parallel=Parallel(tp_size), **options))


def on_ranks(size: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("architecture", "tp_size"), [*((each, 2) for each in ARCHITECTURES), ("llama", 4), ("qwen3", 4)]
)
def test_tokens_are_those_of_one_rank(architecture: str, tp_size: int) -> None:
    """Chunked prompts and decode, sixteen at once, cold and over the prefix cache; greedy and drawn.

    In float32 sums over ranks round otherwise than one product does; the checkpoints' logits are far enough apart.
    """
    assert answers_of(architecture, tp_size) == answers_of(architecture, 1)


@cache
def answers_of(architecture: str, tp_size: int) -> list[list[list[int]]]:
    folder = checkpoint(architecture)
    prompts = prompts_of(folder, LENGTHS)
    engine = engine_of(folder, tp_size)
    assert engine.pool.layout.tp_size == tp_size == len(engine.pool.memories)
    answers = [generate(engine, prompts, sampling, 100 * i) for i, sampling in enumerate(MIXED)]
    engine.close()
    return answers


@pytest.mark.parametrize("tp_size", [2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_one_rank_in_float64(architecture: str, tp_size: int) -> None:
    folder = checkpoint(architecture)
    config = load_config(folder)
    tokens, positions = torch.randint(0, config.vocab_size, (37,)), torch.arange(37)
    ranks = ThreadRanks(tp_size)
    got: list[Tensor] = [torch.empty(0)] * (tp_size + 1)

    def run(rank: int) -> None:
        member = Member(Rank(rank, tp_size), ranks.members[rank]) if rank < tp_size else Member(Rank(), None)
        model = load_model(folder, config, dtype=torch.float64, device=torch.device("cpu"), member=member)
        with torch.inference_mode():
            hidden = model.forward(tokens, positions, DenseAttention(model.config.attention))
            got[rank] = model.logits(hidden)

    on_ranks(tp_size + 1, run)
    *parts, whole = got
    assert all(torch.equal(part, parts[0]) for part in parts), "bit for bit on all ranks"
    torch.testing.assert_close(parts[0], whole, rtol=1e-5, atol=1e-6)  # logits are given in float32


def greedy_of(folder: Path, tp_size: int, formats: Formats) -> list[list[int]]:
    engine = engine_of(folder, tp_size, formats=formats)
    answers = generate(engine, prompts_of(folder, LENGTHS), MIXED[0])
    engine.close()
    return answers


def test_8_bit_weights_are_rounded_alike_on_ranks() -> None:
    folder, formats = checkpoint("llama"), Formats(quantization="fp8")
    one = greedy_of(folder, 1, formats)
    assert one == greedy_of(folder, 2, formats) != greedy_of(folder, 1, Formats())


def test_8_bit_pages_of_every_rank_have_the_scales_of_the_checkpoint(tmp_path: Path) -> None:
    """Scales so small that every value saturates: what is left of it does not depend on how sums are rounded."""
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    for layer in range(3):
        for name in ("k_scale", "v_scale"):
            tensors[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor(1e-6)
    save_file(tensors, folder / SINGLE)
    saturated = greedy_of(folder, 1, Formats("fp8_e4m3"))
    assert saturated == greedy_of(folder, 2, Formats("fp8_e4m3")) != greedy_of(folder, 2, Formats())


def test_pages_of_8_bits_on_ranks() -> None:
    folder = checkpoint("llama")
    engine, plain = engine_of(folder, 2, formats=Formats("fp8_e4m3")), engine_of(folder, 2)
    assert engine.pool.layout.dtype == "float8_e4m3fn" and engine.pool.layout.tp_size == 2
    assert all(tensor.dtype == torch.float8_e4m3fn for tensor in engine.pool.tensors_NL2SKE)
    assert engine.pool.layout.page_bytes * 4 == plain.pool.layout.page_bytes
    engine.close()
    plain.close()


def test_the_warm_up_runs_on_all_ranks_and_leaves_them_as_new() -> None:
    folder = checkpoint("llama")
    prompts, answers = prompts_of(folder, LENGTHS), []
    for warm in (False, True):
        engine = engine_of(folder, 2)
        if warm:
            warm_up(engine.executor, WarmUp(PAGE, engine.pool.num_pages, engine.scheduler.max_model_len, 64, (1, 2, 4)))
            assert all(tensor.count_nonzero() for tensor in engine.pool.tensors_NL2SKE), "every rank wrote pages"
        answers.append(generate(engine, prompts, MIXED[1]))
        engine.close()
    assert answers[0] == answers[1]


def test_preemption_changes_no_token() -> None:
    folder = checkpoint("llama")
    prompts = prompts_of(folder, LENGTHS)
    page_bytes = 2 * 3 * PAGE * 4 * 8 * 4
    engine, few = engine_of(folder, 1), engine_of(folder, 2, kv_memory=24 * page_bytes // 2)
    assert few.pool.num_pages == 20, "kv_memory is each rank's"
    assert generate(few, prompts, MIXED[0]) == generate(engine, prompts, MIXED[0])
    engine.close()
    few.close()


def test_random_weights_are_one_model_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint("qwen3") / "config.json").read_text())
    config, device = load_config(tmp_path), torch.device("cpu")
    whole = random_model(config, dtype=torch.float32, device=device, seed=5).weights
    first, second = (
        random_model(config, dtype=torch.float32, device=device, seed=5, member=Member(Rank(rank, 2), None)).weights
        for rank in range(2)
    )
    assert torch.equal(torch.cat([first.head_VD, second.head_VD]), whole.head_VD)
    assert torch.equal(first.embedding_VD, whole.embedding_VD)
    for mine, other, both in zip(first.layers, second.layers, whole.layers, strict=True):
        for name in ("output", "down"):
            parts = [getattr(layer, name).weight_OI for layer in (mine, other)]
            assert torch.equal(torch.cat(parts, 1), getattr(both, name).weight_OI)
        gates = [layer.gate_up.weight_OI.chunk(2) for layer in (mine, other)]
        gate_up = torch.cat([half for pair in zip(*gates, strict=True) for half in pair])
        assert torch.equal(gate_up, both.gate_up.weight_OI)


def test_a_vocabulary_that_does_not_divide_is_whole_on_every_rank() -> None:
    ranks, logits = ThreadRanks(2), [torch.empty(0)] * 2

    def run(rank: int) -> None:
        member = Member(Rank(rank, 2), ranks.members[rank])
        model = random_model(CONFIG, dtype=torch.float64, device=torch.device("cpu"), seed=1, member=member)
        logits[rank] = model.logits(torch.ones(3, CONFIG.hidden_size, dtype=torch.float64))

    on_ranks(2, run)
    assert CONFIG.vocab_size % 2 and logits[0].shape == (3, CONFIG.vocab_size)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("tp_size", "error", "words"),
    [
        (3, CheckpointError, "num_key_value_heads is 4, expected a multiple of 3 ranks"),
        (8, CheckpointError, "num_key_value_heads is 4, expected a multiple of 8 ranks"),
        (0, InvalidRequest, "tp must be at least 1, not 0"),
    ],
)
def test_what_does_not_divide_is_refused_in_words(tp_size: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        engine_of(checkpoint("llama"), tp_size)


def test_a_collective_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="one of auto, peer, nccl, not 'ring'"):
        Parallel(2, "ring")


# ---------------------------------------------------------------- errors


class Failing(StepRunner):
    """A rank that runs, until it is told to fail."""

    def __init__(self, ranks: ThreadRanks, rank: int, fails_at: int) -> None:
        self.member, self.rank, self.fails_at = ranks.members[rank], rank, fails_at

    def use_device(self) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, plan: StepPlan) -> PendingStep:
        self.member.all_reduce(torch.ones(1))
        if plan.step_id == self.fails_at:
            raise ZeroDivisionError(f"rank {self.rank}")
        self.member.all_reduce(torch.ones(1))
        raise AssertionError("a step without all ranks must not get here")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_ends_the_step_of_all_with_its_error(failing: int) -> None:
    ranks = ThreadRanks(3)
    executor = RankedExecutor([Failing(ranks, rank, 0 if rank == failing else 9) for rank in range(3)], ranks.abort)
    executor.launch(StepPlan(0))
    executor.launch(StepPlan(1))
    with pytest.raises(ZeroDivisionError, match=f"rank {failing}"):
        executor.collect()
    with pytest.raises(RankLost):
        executor.collect()
    executor.close()


class Waiting(StepRunner):
    """Step 0 runs until the waits of all devices are ended from the host; rank 1 fails at step 1."""

    def __init__(self, rank: int, ended: threading.Event) -> None:
        self.rank, self.ended = rank, ended

    def use_device(self) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, plan: StepPlan) -> PendingStep:
        if plan.step_id == 1 and self.rank == 1:
            raise ZeroDivisionError("rank 1")
        return PendingStep(plan.step_id, 0, Device(self.ended), [])


class Device(Stopwatch):
    def __init__(self, ended: threading.Event) -> None:
        self.ended = ended

    def wait(self) -> float:
        assert self.ended.wait(60)
        return 0.0


def test_a_step_whose_waits_a_later_failure_ended_is_no_result() -> None:
    ended = threading.Event()
    executor = RankedExecutor([Waiting(rank, ended) for rank in range(2)], ended.set)
    executor.launch(StepPlan(0))
    executor.launch(StepPlan(1))
    with pytest.raises(ZeroDivisionError, match="rank 1"):
        executor.collect()
    executor.close()


def test_sums_are_the_same_on_all_ranks_for_many_rounds() -> None:
    ranks, rounds = ThreadRanks(4), 300
    sums: list[list[Tensor]] = [[] for _ in range(4)]

    def run(rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)
        for _ in range(rounds):
            sums[rank].append(ranks.members[rank].all_reduce(torch.randn(3, 5, generator=generator)))

    on_ranks(4, run)
    parts = [torch.Generator().manual_seed(rank) for rank in range(4)]
    for round in range(rounds):
        first, *others = (torch.randn(3, 5, generator=generator) for generator in parts)
        total = first
        for other in others:
            total = total + other
        assert all(torch.equal(each[round], total) for each in sums)


def test_settings_without_ranks_are_the_ones_of_before() -> None:
    assert EngineConfig("m").parallel == Parallel(1, "auto")
