"""8-bit weights: their error, every published way to store them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.errors import CheckpointError
from engine.models.checkpoint import SINGLE
from engine.models.fp8 import FP8, quantize_rows, read_kv_scales
from engine.models.layers import Linear
from engine.models.llama import Llama
from engine.models.loader import ALONE, Member, load_model, random_model
from engine.models.registry import load_config
from engine.models.weights import Rank
from tests.fakes.checkpoints import tiny_checkpoint
from tests.fakes.dense_attention import DenseAttention
from tests.unit.runtime.tiny import CONFIG

CPU = torch.device("cpu")
BOUND = 3e-2
"""Relative L2 error of a product with weights rounded to a mantissa of 3 bits; 2.6e-2 on average."""
LOGITS_BOUND = 0.2
"""Of the tiny models, whose large weights amplify what their three layers of four products lose; 0.10 to 0.15 seen."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DYNAMIC = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True, "dynamic": False}}


def load(folder: Path, *, quantize: bool, member: Member = ALONE) -> Llama:
    config = load_config(folder)
    return load_model(folder, config, dtype=torch.float32, device=CPU, quantize=quantize, member=member)


def products(model: Llama) -> list[Linear]:
    return [each for layer in model.weights.layers for each in (layer.qkv, layer.output, layer.gate_up, layer.down)]


def dense(linear: Linear) -> torch.Tensor:
    return linear.weight_OI.float() if linear.scale_O is None else linear.weight_OI.float() * linear.scale_O[:, None]


def is_product(name: str) -> bool:
    return name.endswith(tuple(f"{projection}.weight" for projection in PROJECTIONS))


def publish(tmp_path: Path, how: str, configuration: dict[str, Any]) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint with 8-bit weights stored `how`, and the weights that it stands for."""
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / how.replace(" ", "-"))
    tensors, exact = {}, {}
    for name, tensor in load_file(folder / SINGLE).items():
        if not is_product(name):
            tensors[name] = tensor
            continue
        if how == "block":
            scale = (
                tensor.abs().amax() / 448 * torch.rand(-(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128)).add(1)
            )
            spread = scale.repeat_interleave(128, 0)[: tensor.shape[0]].repeat_interleave(128, 1)[:, : tensor.shape[1]]
            suffix = "weight_scale_inv"
        else:
            scale = tensor.abs().amax(1, keepdim=True) / 448 if how == "channel" else tensor.abs().amax() / 448
            spread, suffix = scale, "weight_scale"
        tensors[name] = (tensor / spread).to(FP8)
        tensors[f"{name.removesuffix('weight')}{suffix}"] = scale
        exact[name] = tensors[name].float() * spread
        if how == "static":
            tensors[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(0.5)
    save_file(tensors, folder / SINGLE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": configuration}))
    return folder, exact


PUBLISHED = {
    "tensor": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "static": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    "block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": DYNAMIC},
    },
}


@pytest.mark.parametrize("how", PUBLISHED)
def test_published_formats(tmp_path: Path, how: str) -> None:
    folder, exact = publish(tmp_path, how, PUBLISHED[how])
    assert load_config(folder).quantization == "fp8"
    kept, widened = load(folder, quantize=True), load(folder, quantize=False)
    attention = "model.layers.1.self_attn"
    expected = torch.cat([exact[f"{attention}.{name}_proj.weight"] for name in "qkv"])
    assert widened.weights.layers[1].qkv.scale_O is None
    torch.testing.assert_close(widened.weights.layers[1].qkv.weight_OI, expected)
    error = (dense(kept.weights.layers[1].qkv) - expected).norm() / expected.norm()
    assert error < (BOUND if how == "block" else 1e-6), "blocks become one scale a row; the others are kept"
    assert all(each.weight_OI.dtype == FP8 for each in products(kept))


def assert_parts_of(whole: Llama, parts: list[Llama]) -> None:
    """Values and scales, bit for bit."""
    facts = parts[0].config.attention
    num_heads, num_kv, width = facts.num_heads, facts.num_kv_heads, facts.head_dim
    for both, *layers in zip(whole.weights.layers, *(part.weights.layers for part in parts), strict=True):
        for name in ("output", "down"):
            one, *others = (getattr(layer, name) for layer in (both, *layers))
            assert torch.equal(torch.cat([each.weight_OI.float() for each in others], 1), one.weight_OI.float())
            assert all(torch.equal(each.scale_O, one.scale_O) for each in others), "scales of whole rows"
        for get in (lambda linear: linear.weight_OI.float(), lambda linear: linear.scale_O):
            halves = [get(layer.gate_up).chunk(2) for layer in layers]
            assert torch.equal(
                torch.cat([half for pair in zip(*halves, strict=True) for half in pair]), get(both.gate_up)
            )
            rows = [get(layer.qkv).split([each * width for each in (num_heads, num_kv, num_kv)]) for layer in layers]
            assert torch.equal(torch.cat([half for pair in zip(*rows, strict=True) for half in pair]), get(both.qkv))


@pytest.mark.parametrize("how", [*PUBLISHED, "16 bits"])
def test_ranks_hold_parts_of_one_rounded_model(tmp_path: Path, how: str) -> None:
    folder = publish(tmp_path, how, PUBLISHED[how])[0] if how in PUBLISHED else tiny_checkpoint("llama")
    parts = [load(folder, quantize=True, member=Member(Rank(rank, 2), None)) for rank in range(2)]
    assert_parts_of(load(folder, quantize=True), parts)


def test_ranks_draw_parts_of_one_rounded_model() -> None:
    whole, *parts = (
        random_model(CONFIG, dtype=torch.float32, device=CPU, seed=3, quantize=True, member=member)
        for member in (ALONE, Member(Rank(0, 2), None), Member(Rank(1, 2), None))
    )
    assert_parts_of(whole, parts)


def test_products_of_random_weights_stay_within_the_bound() -> None:
    x = torch.randn(40, 512)
    for std in (1e-3, 1.0, 1e3):
        weight = torch.randn(300, 512) * std
        values, scale = quantize_rows(weight)
        exact = x.double() @ weight.double().T
        for dtype, bound in ((torch.float32, BOUND), (torch.bfloat16, BOUND + 4e-3)):
            got = Linear(values, torch.zeros(300, dtype=dtype), scale)(x.to(dtype))
            assert got.dtype == dtype and (got.double() - exact).norm() / exact.norm() < bound
    assert quantize_rows(torch.zeros(2, 4))[0].float().abs().sum() == 0, "a row of zeros has no NaN"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_logits_of_a_quantized_model_stay_near(architecture: str) -> None:
    folder = tiny_checkpoint(architecture)
    tokens = torch.randint(0, 250, (64,), generator=torch.Generator().manual_seed(1))
    logits = []
    for quantize in (False, True):
        model = load(folder, quantize=quantize)
        with torch.inference_mode():
            hidden = model.forward(tokens, torch.arange(len(tokens)), DenseAttention(model.config.attention))
            logits.append(model.logits(hidden))
    error = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < error < LOGITS_BOUND, f"{error:.3f}"


def test_random_weights_are_quantized_alike() -> None:
    plain, rounded = (
        random_model(CONFIG, dtype=torch.float32, device=CPU, seed=3, quantize=each) for each in (False, True)
    )
    for exact, got in zip(products(plain), products(rounded), strict=True):
        assert (dense(got) - exact.weight_OI).norm() / exact.weight_OI.norm() < BOUND
    assert torch.equal(plain.weights.head_VD, rounded.weights.head_VD)


def test_a_weight_without_its_scale_is_named(tmp_path: Path) -> None:
    folder, _ = publish(tmp_path, "tensor", PUBLISHED["tensor"])
    tensors = load_file(folder / SINGLE)
    del tensors["model.layers.2.mlp.up_proj.weight_scale"]
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.2.mlp.up_proj.weight_scale is missing"):
        load(folder, quantize=True)
    tensors["model.layers.2.mlp.up_proj.weight_scale"] = torch.ones(3, 5)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"has shape \[3, 5\], expected one value, 112, or one for each block"):
        load(folder, quantize=True)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"quant_method": "awq"}, 'quant_method is "awq", expected one of fp8'),
        (
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            r"weight_block_size is \[64, 64\], expected \[128, 128\]",
        ),
        ({"quant_method": "compressed-tensors"}, "config_groups is missing, expected at least one group"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int", "num_bits": 8}}}},
            "group g is not supported",
        ),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, configuration: dict[str, Any], message: str) -> None:
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": configuration}))
    with pytest.raises(CheckpointError, match=message):
        load_config(folder)


@pytest.mark.parametrize("names", [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale")])
def test_kv_scales_are_read_where_every_layer_has_them(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    for layer in range(3):
        assert read_kv_scales(folder, 3) == (), f"{layer} of 3 layers have scales"
        for name, value in zip(names, (0.5 + layer, 2.0), strict=True):
            tensors[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor([value])
        save_file(tensors, folder / SINGLE)
    assert read_kv_scales(folder, 3) == ((0.5, 2.0), (1.5, 2.0), (2.5, 2.0))
