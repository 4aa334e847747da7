"""The fused kernels against plain torch, under Triton's interpreter on CPU."""

import pytest
import torch

from engine.kernels.activation import silu_mul
from engine.kernels.argmax import argmax
from engine.kernels.caches import Caches
from engine.kernels.linear_small import Tiles, linear_small
from engine.kernels.norm import add_rms_norm, rms_norm
from engine.kernels.rope_write import rope_and_write

EPS = 1e-5


def norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (5, 96), (3, 640)])
def test_norm_and_residual(tokens: int, width: int) -> None:
    x, residual, weight = torch.randn(tokens, width), torch.randn(tokens, width), torch.randn(width)
    torch.testing.assert_close(rms_norm(x, weight, EPS), norm_reference(x, weight))
    total = x + residual
    out = add_rms_norm(x, residual, weight, EPS)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(out, norm_reference(total, weight))


@pytest.mark.parametrize("width", [16, 100, 3000])
def test_silu_mul(width: int) -> None:
    gate_up = torch.randn(3, 2 * width)
    torch.testing.assert_close(silu_mul(gate_up), torch.nn.functional.silu(gate_up[:, :width]) * gate_up[:, width:])


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rope_and_write(head_dim: int, with_norm: bool) -> None:
    tokens, heads, kv_heads, page_size, num_pages, num_layers = 6, 4, 2, 4, 5, 3
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    angle = torch.rand(32, head_dim // 2) * 3
    positions = torch.tensor([3, 4, 5, 0, 31, 7])
    slots = torch.tensor([7, 8, 19, 0, -1, 2])
    slab = torch.full((num_pages, num_layers, 2, page_size, kv_heads, head_dim), 7.0)
    caches = Caches(slab[:, 1, 0], slab[:, 1, 1])
    weight = torch.randn(heads + kv_heads, head_dim)
    norm = (weight, EPS) if with_norm else None
    original = qkv.clone()
    q, k, v = rope_and_write(qkv, torch.cat([angle.cos(), angle.sin()], -1), positions, slots, caches, heads, norm)

    parts = original.view(tokens, heads + 2 * kv_heads, head_dim).split([heads, kv_heads, kv_heads], 1)
    q_ref, k_ref = parts[0], parts[1]
    if norm:
        q_ref, k_ref = norm_reference(q_ref, weight[:heads]), norm_reference(k_ref, weight[heads:])
    cos, sin = angle.cos()[positions].repeat(1, 2)[:, None], angle.sin()[positions].repeat(1, 2)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    torch.testing.assert_close(q, rotate(q_ref))
    torch.testing.assert_close(k, rotate(k_ref))
    torch.testing.assert_close(v, parts[2])
    expected = torch.full_like(slab, 7.0)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // page_size, 1, 0, slot % page_size] = rotate(k_ref)[token]
            expected[slot // page_size, 1, 1, slot % page_size] = parts[2][token]
    torch.testing.assert_close(slab, expected)


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize(("features", "width"), [(40, 96), (64, 128)])
def test_linear_small_stages(rows: int, features: int, width: int) -> None:
    tiles = Tiles(32, 64, 4, 2)
    x, weight = torch.randn(rows, width), torch.randn(features, width)
    residual, bias = torch.randn(rows, features), torch.randn(features)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(linear_small(x, weight, tiles=tiles), x @ weight.T, **close)
    out = linear_small(x, weight, residual_MN=residual, bias_N=bias, tiles=tiles)
    torch.testing.assert_close(out, x @ weight.T + bias + residual, **close)
    packed = torch.randn(2 * features, width)
    gate, up = (x @ packed.T).chunk(2, -1)
    out = linear_small(x, packed, silu_mul=True, tiles=tiles)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate) * up, **close)


@pytest.mark.parametrize("num_vocab", [5, 4096, 9001])
def test_argmax_takes_the_first_of_equals(num_vocab: int) -> None:
    logits = torch.randint(0, 50, (3, num_vocab)).float()
    logits[1] = -torch.inf
    logits[1, num_vocab // 2] = 0.0
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert argmax(logits).tolist() == expected
