"""The assembled engine against transformers: scheduler, pages, attention, model and sampler together."""

import math
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from engine.core.errors import CheckpointError, InvalidRequest
from engine.core.types import FinishReason, Request, Sampling
from engine.models.registry import load_config
from engine.runtime.build import Engine, build_engine, resolve_device
from engine.runtime.config import EngineConfig
from tests.fakes.checkpoints import ARCHITECTURES, reference_model, tiny_checkpoint

PAGE = 8
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 31, 32, 33, 70, 5, 40, 12, 3, 64, 65, 50]
NUM_NEW = 20


def config_of(folder: Path, **options: object) -> EngineConfig:
    settings = {"page_size": PAGE, "max_model_len": 128, "max_step_tokens": 48, "max_rows": 16, "kv_memory": 8 << 20}
    return EngineConfig(str(folder), device="cpu", dtype="float32", **(settings | options))  # type: ignore[arg-type]


def prompts_of(folder: Path, lengths: Sequence[int]) -> list[list[int]]:
    vocab = load_config(folder).vocab_size
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (length,), generator=rng).tolist() for length in lengths]


def generate(engine: Engine, prompts: list[list[int]], sampling: Sampling, first_id: int = 0) -> list[list[int]]:
    outputs: dict[int, list[int]] = {}
    for id, prompt in enumerate(prompts, first_id):
        outputs[id] = []
        engine.core.submit(Request(id, array("i", prompt), len(prompt), sampling, 0.0, math.inf))
    num_finished = 0
    while num_finished < len(prompts):
        result = engine.core.step(0.0)
        for id, token in zip(result.ids, result.tokens, strict=True):
            outputs[id].append(token)
        assert all(finished.reason is FinishReason.LENGTH for finished in result.finished)
        num_finished += len(result.finished)
        engine.core.check_integrity()
    return list(outputs.values())


def by_transformers(folder: Path, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    model = reference_model(folder)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False, eos_token_id=None
        )
        outputs.append(tokens[0, len(prompt) :].tolist())
    return outputs


@cache
def greedy_by_transformers(folder: Path) -> list[list[int]]:
    return by_transformers(folder, prompts_of(folder, LENGTHS), NUM_NEW)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", ["torch", "torch_cpu", "numba"])
def test_greedy_tokens_are_those_of_transformers(architecture: str, backend: str) -> None:
    """Chunked prompts, sixteen at once, cold and again over the prefix cache."""
    folder = tiny_checkpoint(architecture)
    prompts = prompts_of(folder, LENGTHS)
    want = greedy_by_transformers(folder)
    engine = build_engine(config_of(folder, attention_backend=backend))
    sampling = Sampling(max_tokens=NUM_NEW, temperature=0.0)
    assert generate(engine, prompts, sampling) == want
    assert generate(engine, prompts, sampling, first_id=100) == want
    engine.close()


def test_preemption_changes_no_token() -> None:
    folder = tiny_checkpoint("llama")
    prompts = prompts_of(folder, LENGTHS)
    page_bytes = 2 * 3 * PAGE * 2 * 16 * 4
    engine = build_engine(config_of(folder, kv_memory=24 * page_bytes))
    assert engine.pool.num_pages == 20
    sampling = Sampling(max_tokens=NUM_NEW, temperature=0.0)
    assert generate(engine, prompts, sampling) == greedy_by_transformers(folder)
    engine.close()


def test_seeded_request_does_not_depend_on_its_neighbours() -> None:
    folder = tiny_checkpoint("qwen3")
    prompts = prompts_of(folder, LENGTHS[:6])
    engine = build_engine(config_of(folder, max_step_tokens=16))
    sampling = Sampling(max_tokens=NUM_NEW, temperature=1.2, top_p=0.9, seed=77)
    together = generate(engine, prompts, sampling)
    alone = [generate(engine, [prompt], sampling, first_id=100 + i)[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    engine.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(dtype: str) -> None:
    folder = tiny_checkpoint("llama", dtype=dtype)
    config = EngineConfig(str(folder), device="cpu", page_size=PAGE, kv_memory=8 << 20, max_model_len=128)
    engine = build_engine(config)
    assert engine.pool.layout.dtype == dtype
    tokens = generate(engine, prompts_of(folder, [9, 17]), Sampling(max_tokens=8, temperature=0.0))
    assert [len(each) for each in tokens] == [8, 8]
    engine.close()


def test_random_weights_need_only_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint("llama") / "config.json").read_text())
    first, again, other = (
        build_engine(config_of(tmp_path, random_weights=True, seed=seed)).pool.layout.model_hash for seed in (1, 1, 2)
    )
    assert first == again != other
    with pytest.raises(CheckpointError):
        build_engine(config_of(tmp_path))


def test_settings_are_resolved_by_device_and_memory() -> None:
    folder = tiny_checkpoint("llama")
    engine = build_engine(EngineConfig(str(folder), device="cpu", kv_memory=4 << 20))
    assert engine.pool.layout.page_size == 16
    assert engine.scheduler.max_model_len == 1024
    assert engine.attention == "numba"
    assert len(engine.pool.generations) > engine.pool.num_pages == engine.scheduler.num_pages
    with pytest.raises(InvalidRequest, match="one sequence of max_model_len 1000"):
        build_engine(config_of(folder, max_model_len=1000, kv_memory=1 << 18))
    engine.close()


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99"])
def test_devices_that_are_not_here_are_refused_in_words(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_device(name)
    assert caught.value.param == "device"
