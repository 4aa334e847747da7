"""Logits of every variant of the family equal transformers' logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.llama import Llama
from engine.models.loader import load_model
from engine.models.registry import load_config
from tests.fakes.checkpoints import ARCHITECTURES, reference_model, tiny_checkpoint
from tests.fakes.dense_attention import DenseAttention

CPU = torch.device("cpu")
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 128, "rope_theta": 500000.0},
    "yarn": YARN | {"rope_theta": 10000.0},
    "yarn-tuned": YARN | {"rope_theta": 1e6, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn-attention-factor": YARN | {"rope_theta": 1e6, "attention_factor": 1.3},
    "yarn-mscale": YARN | {"rope_theta": 1e6, "mscale": 1.0, "mscale_all_dim": 0.7},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1}),
    "mistral-unlimited": ("mistral", {"sliding_window": None}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3-layer-types": (
        "qwen3",
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 12},
    ),
    **{f"rope-{name}": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
}


def load(folder: Path, max_model_len: int | None = None) -> Llama:
    return load_model(folder, load_config(folder, max_model_len), dtype=torch.float32, device=CPU)


def logits(model: Llama, tokens_T: torch.Tensor, pieces: tuple[int, ...] = ()) -> torch.Tensor:
    """Of every position, the sequence given in pieces of those lengths and a last one of what is left."""
    attend, outputs, start = DenseAttention(model.config.attention), [], 0
    with torch.inference_mode():
        for piece in torch.split(tokens_T, [*pieces, len(tokens_T) - sum(pieces)]):
            positions_T = torch.arange(start, start + len(piece))
            outputs.append(model.logits(model.forward(piece, positions_T, attend)))
            start += len(piece)
    return torch.cat(outputs)


def reference_logits(folder: Path, tokens_T: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return reference_model(folder)(tokens_T[None]).logits[0]


def random_tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str) -> None:
    architecture, overrides = VARIANTS[variant]
    folder = tiny_checkpoint(architecture, **overrides)
    tokens_T = random_tokens(200)
    assert_same(logits(load(folder), tokens_T, pieces=(1, 63, 70)), reference_logits(folder, tokens_T))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("llama", "rope-dynamic")])
def test_each_variant_differs_from_plain_llama_in_what_it_names(variant: str) -> None:
    """Guards the test above: a fact that changes no logit is a fact that it does not test."""
    architecture, overrides = VARIANTS[variant]
    tokens_T = random_tokens(200)
    plain = reference_logits(tiny_checkpoint("llama"), tokens_T)
    assert (reference_logits(tiny_checkpoint(architecture, **overrides), tokens_T) - plain).abs().max() > 0.01


@pytest.mark.parametrize("rope", ROPES)
def test_rope_scaling_of_older_files(rope: str, tmp_path: Path) -> None:
    """rope_theta beside rope_scaling, `type` for `rope_type`, torch_dtype for dtype."""
    fields = dict(ROPES[rope])
    folder = tmp_path / "old"
    shutil.copytree(tiny_checkpoint("llama", rope_parameters=fields), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config["rope_theta"] = fields.pop("rope_theta")
    fields["type"] = fields.pop("rope_type")
    config["rope_scaling"] = None if rope == "default" else fields
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    tokens_T = random_tokens(150)
    assert_same(logits(load(folder), tokens_T), reference_logits(folder, tokens_T))


def test_dynamic_rope_beyond_the_trained_length_equals_a_sequence_of_that_length() -> None:
    fields = {"max_position_embeddings": 96, "rope_parameters": ROPES["dynamic"]}
    folder = tiny_checkpoint("llama", **fields)
    tokens_T = random_tokens(250)
    assert_same(logits(load(folder, max_model_len=250), tokens_T), reference_logits(folder, tokens_T))


def test_head_in_the_file_of_a_tied_checkpoint_is_used(tmp_path: Path) -> None:
    """transformers does not tie either when the file has both and they differ."""
    folder = tmp_path / "both"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tokens_T = random_tokens(50)
    assert_same(logits(load(folder), tokens_T), reference_logits(folder, tokens_T))


def test_half_precision_follows_transformers_roundings() -> None:
    folder = tiny_checkpoint("qwen3", dtype="bfloat16", sliding_window=None)
    model = load_model(folder, load_config(folder), dtype=torch.bfloat16, device=CPU)
    assert model.config.dtype == "bfloat16"
    tokens_T = random_tokens(40)
    reference = reference_model(folder).to(torch.bfloat16)
    with torch.inference_mode():
        expected = reference(tokens_T[None]).logits[0].float()
    actual = logits(model, tokens_T)
    assert actual.dtype == torch.float32
    exact = logits(load(folder), tokens_T)
    ours, theirs = (actual - exact).abs().mean(), (expected - exact).abs().mean()
    assert ours < 1.25 * theirs  # as close to float32 as transformers' own half precision
