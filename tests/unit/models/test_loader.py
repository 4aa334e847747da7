"""Reading weights: sharded files, progress, memory, and every tensor that does not fit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.errors import CheckpointError
from engine.models.checkpoint import SINGLE
from engine.models.config import ModelConfig
from engine.models.llama import Llama
from engine.models.loader import load_model, random_model
from engine.models.registry import load_config
from tests.fakes.checkpoints import tiny_checkpoint

CPU = torch.device("cpu")


def load(folder: Path, **options: Any) -> Llama:
    return load_model(folder, load_config(folder), **{"dtype": torch.float32, "device": CPU} | options)


def all_weights(model: Llama) -> list[torch.Tensor]:
    weights = [model.weights.embedding_VD, model.weights.norm_D, model.weights.head_VD]
    for layer in model.weights.layers:
        weights += [layer.input_norm_D, layer.mlp_norm_D]
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            weights += [linear.weight_OI] + ([] if linear.bias_O is None else [linear.bias_O])
    return weights


def same_weights(first: Llama, second: Llama) -> bool:
    return all(torch.equal(*pair) for pair in zip(all_weights(first), all_weights(second), strict=True))


def test_sharded_weights_are_the_same_weights() -> None:
    single, sharded = load(tiny_checkpoint("qwen3")), load(tiny_checkpoint("qwen3", shard_bytes=60_000))
    assert same_weights(single, sharded)


def test_projections_are_stacked_in_order() -> None:
    folder = tiny_checkpoint("qwen2")
    stored, layer = load_file(folder / SINGLE), load(folder).weights.layers[1]
    names = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    assert torch.equal(layer.qkv.weight_OI, torch.cat([stored[f"{name}.weight"] for name in names]))
    assert torch.equal(layer.qkv.bias_O, torch.cat([stored[f"{name}.bias"] for name in names]))


def test_tied_embeddings_share_memory() -> None:
    tied, untied = load(tiny_checkpoint("qwen2")).weights, load(tiny_checkpoint("llama")).weights
    assert tied.head_VD is tied.embedding_VD
    assert untied.head_VD is not untied.embedding_VD


def test_weights_are_cast() -> None:
    folder = tiny_checkpoint("llama", dtype="bfloat16")
    halves = load_file(folder / SINGLE)["model.norm.weight"]
    assert torch.equal(load(folder).weights.norm_D, halves.float())
    assert load(folder, dtype=torch.float16).weights.norm_D.dtype == torch.float16


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    folder = tiny_checkpoint("llama")
    load(folder, progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in load_file(folder / SINGLE).values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")


def replace_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / SINGLE)


NAME = "model.layers.2.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, f"{{folder}}: tensor {NAME} is missing, expected [32, 64] of F32, BF16, F16"),
        (
            torch.zeros(64, 32),
            f"{{folder}}/{SINGLE}: tensor {NAME} has shape [64, 32], expected [32, 64] of F32, BF16, F16 (config.json)",
        ),
        (
            torch.zeros(32, 64, dtype=torch.int8),
            f"{{folder}}/{SINGLE}: tensor {NAME} has dtype I8, expected [32, 64] of F32, BF16, F16",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, tensor: torch.Tensor | None, message: str) -> None:
    replace_tensor(folder, NAME, tensor)
    with pytest.raises(CheckpointError, match=f"^{re.escape(message.format(folder=folder))}$"):
        load(folder)


def test_an_untied_checkpoint_without_head(folder: Path) -> None:
    replace_tensor(folder, "lm_head.weight", None)
    with pytest.raises(CheckpointError, match=r"tensor lm_head.weight is missing, expected \[260, 64\]"):
        load(folder)


def test_config_and_weights_of_different_models(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"tensor model.layers.3.input_layernorm.weight is missing"):
        load(folder)


def test_a_file_that_breaks_while_it_is_read(folder: Path) -> None:
    """Headers were fine; then somebody replaced the file."""

    def truncate(done: int, _total: int) -> None:
        (folder / SINGLE).write_bytes(b"")

    with pytest.raises(CheckpointError, match=f"^{folder / SINGLE}: tensor .* cannot be read: "):
        load(folder, progress=truncate)


def test_peak_memory_is_the_model_and_one_tensor(tmp_path: Path) -> None:
    """A fresh process loads 110 MB of bfloat16 as bfloat16: its peak grows by little more than that."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "head_dim": 64}
    folder = tiny_checkpoint("llama", dtype="bfloat16", num_attention_heads=16, num_key_value_heads=16, **shape)
    size = (folder / SINGLE).stat().st_size
    code = f"""
import resource, torch
from pathlib import Path
from engine.models.loader import load_model
from engine.models.registry import load_config
warm, folder = Path({str(tiny_checkpoint("llama"))!r}), Path({str(folder)!r})
load_model(warm, load_config(warm), dtype=torch.bfloat16, device=torch.device("cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_model(folder, load_config(folder), dtype=torch.bfloat16, device=torch.device("cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert size > 90e6
    assert int(grown.stdout) * 1024 < size * 1.2


def test_random_models_are_the_seed() -> None:
    config: ModelConfig = load_config(tiny_checkpoint("qwen3"))
    first, again, other = (random_model(config, dtype=torch.float32, device=CPU, seed=seed) for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert first.weights.norm_D.eq(1.0).all()
