"""The fused kernels against plain torch, under Triton's interpreter on CPU."""

import pytest
import torch

from engine.core.errors import InvalidRequest
from engine.kernels import gate_up
from engine.kernels.activation import silu_mul
from engine.kernels.argmax import argmax
from engine.kernels.caches import Caches
from engine.kernels.fp8 import check_widths, quantize, silu_mul_quantize
from engine.kernels.linear_small import (
    HALF_SCALE,
    MAX_BYTES_IN_FLIGHT,
    MAX_ROWS,
    MAX_ROWS_SILU,
    Tiles,
    choose_tiles,
    linear_small,
    linear_small_norm,
    to_half,
)
from engine.kernels.norm import add_rms_norm, rms_norm
from engine.kernels.rope_write import rope_and_write
from engine.models.fp8 import quantize_rows

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
    both = torch.randn(3, 2 * width)
    torch.testing.assert_close(silu_mul(both), torch.nn.functional.silu(both[:, :width]) * both[:, width:])


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
@pytest.mark.parametrize("bulk", [False, True])
def test_linear_small_stages(rows: int, features: int, width: int, bulk: bool) -> None:
    tiles = Tiles(32, 64, 4, 2, bulk)
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


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize(("features", "width"), [(40, 96), (64, 128)])
@pytest.mark.parametrize("bulk", [False, True])
def test_the_norm_between_two_products(rows: int, features: int, width: int, bulk: bool) -> None:
    tiles = Tiles(32, 64, 4, 2, bulk)
    x, weight, residual = torch.randn(rows, width), torch.randn(features, width), torch.randn(rows, features)
    bias, gain, packed = torch.randn(features), torch.randn(features), torch.randn(2 * features, features)
    stream, unscaled = linear_small_norm(x, weight, residual, (gain, EPS), bias_N=bias, tiles=tiles)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(stream, x @ weight.T + bias + residual, **close)
    normed = norm_reference(stream, gain)
    more = torch.randn(2 * features)
    torch.testing.assert_close(
        linear_small(unscaled, packed, bias_N=more, tiles=tiles), normed @ packed.T + more, **close
    )
    gate, up = (normed @ packed.T).chunk(2, -1)
    out = linear_small(unscaled, packed, silu_mul=True, tiles=tiles)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate) * up, **close)


@pytest.mark.parametrize(("rows", "features", "width"), [(65, 100, 96), (128, 256, 128)])
def test_gate_up_of_many_rows(rows: int, features: int, width: int) -> None:
    x, weight = torch.randn(rows, width), torch.randn(2 * features, width)
    gate, up = (x @ weight.T).chunk(2, -1)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(gate_up.gate_up(x, weight), torch.nn.functional.silu(gate) * up, **close)
    assert not gate_up.takes(x.bfloat16(), weight.bfloat16()), "a CPU has no engine for tiles"


@pytest.mark.parametrize("num_vocab", [5, 4096, 9001])
def test_argmax_takes_the_first_of_equals(num_vocab: int) -> None:
    logits = torch.randint(0, 50, (3, num_vocab)).float()
    logits[1] = -torch.inf
    logits[1, num_vocab // 2] = 0.0
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert argmax(logits).tolist() == expected


def representable(*shape: int) -> torch.Tensor:
    """Numbers that 8-bit floats hold. Triton's interpreter, unlike a device, rounds 31.9 to 16 instead of 32."""
    return torch.randn(*shape).mul(30).to(torch.float8_e4m3fn).float()


def check_rope_into_8_bit_pages(device: str, rounding: float) -> None:
    """Pages get k / k_scale and v / v_scale within `rounding`, saturated; 0: no rotation, numbers that fit exactly."""
    heads, kv_heads, head_dim, page_size = 4, 2, 64, 4
    qkv = representable(6, (heads + 2 * kv_heads) * head_dim).to(device) / 8
    qkv[0, -1] = 1e6
    angle = torch.rand(32, head_dim // 2, device=device) * (3 if rounding else 0)
    positions, slots = torch.arange(6, device=device), torch.tensor([7, 8, 19, 0, -1, 2], device=device)
    slab = torch.zeros(5, 3, 2, page_size, kv_heads, head_dim, device=device).to(torch.float8_e4m3fn)
    caches = Caches(slab[:, 1, 0], slab[:, 1, 1], 0.25, 2.0)
    _, k, v = rope_and_write(qkv, torch.cat([angle.cos(), angle.sin()], -1), positions, slots, caches, heads)
    written = slots >= 0
    for half, (new, scale) in enumerate(((k, 0.25), (v, 2.0))):
        stored = slab.float()[slots[written] // page_size, 1, half, slots[written] % page_size] * scale
        expected = new[written].clamp(-448 * scale, 448 * scale)
        smallest = scale * 2**-9
        assert bool(((stored - expected).abs() <= expected.abs() * rounding + smallest).all())
    assert bool((slab.float()[1, 1, 0, 0] == 0).all()) and int((slab.float()[:, 0] != 0).sum()) == 0


def test_rope_into_8_bit_pages() -> None:
    check_rope_into_8_bit_pages("cpu", rounding=0)


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_are_quantized_each_with_its_own_scale(rows: int) -> None:
    x = representable(rows, 100) * torch.tensor([2.0**power for power in range(rows)])[:, None]
    x[:, 0] = torch.tensor([448.0 * 2**power for power in range(rows)])
    x8 = quantize(x)
    assert x8.scale_T1[:, 0].tolist() == [2.0**power for power in range(rows)]
    torch.testing.assert_close(x8.values_TI.float() * x8.scale_T1, x)
    both = torch.randn(rows, 2 * 72)
    expected = torch.nn.functional.silu(both[:, :72]) * both[:, 72:]
    x8 = silu_mul_quantize(both)
    assert len(x8) == rows
    torch.testing.assert_close(x8.scale_T1[:, 0], expected.abs().amax(1) / 448)
    near = ((x8.values_TI.float() * x8.scale_T1 - expected).abs() <= expected.abs() / 8).float().mean()
    assert near > 0.9, "the rest are the interpreter's"


@pytest.mark.parametrize("rows", [1, 17])
def test_linear_small_with_8_bit_weights(rows: int) -> None:
    tiles, features, width = Tiles(32, 64, 4, 2), 64, 96
    x, residual = torch.randn(rows, width), torch.randn(rows, features)
    values, scale = quantize_rows(torch.randn(2 * features, width))
    exact = x @ (values.float() * scale[:, None]).T
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(linear_small(x, values, scale_N=scale, tiles=tiles), exact, **close)
    few, bias = values[:features], torch.randn(features)
    out = linear_small(x, few, scale_N=scale[:features], bias_N=bias, residual_MN=residual, tiles=tiles)
    torch.testing.assert_close(out, exact[:, :features] + bias + residual, **close)
    gate, up = exact.chunk(2, -1)
    out = linear_small(x, values, scale_N=scale, silu_mul=True, tiles=tiles)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate) * up, **close)


def test_widths_that_the_products_cannot_take_are_refused() -> None:
    check_widths([64, 4096])
    with pytest.raises(InvalidRequest, match="multiples of 16, not 40"):
        check_widths([64, 40])


def test_activations_for_8_bit_weights_keep_their_bits() -> None:
    x = torch.tensor([[1.0, -3.140625, 1e-5, 9e5, -7e6, 0.0]], dtype=torch.bfloat16)
    again = to_half(x).float() * HALF_SCALE
    torch.testing.assert_close(again[:, :2], x[:, :2].float(), rtol=0, atol=0)
    torch.testing.assert_close(again[:, 2:4], x[:, 2:4].float(), rtol=0.05, atol=0)
    assert again[0, 4] == -65504 * HALF_SCALE, "beyond the range: the largest, not infinity"


@pytest.mark.parametrize("weight_bytes", [1, 2, 4])
@pytest.mark.parametrize("x_bytes", [2, 4])
@pytest.mark.parametrize(("silu_mul", "bulk"), [(False, False), (True, False), (False, True), (True, True)])
def test_tiles_in_flight_fit_shared_memory(weight_bytes: int, x_bytes: int, silu_mul: bool, bulk: bool) -> None:
    for num_out in (64, 1024, 4096, 5120, 5121, 7168, 8191, 8192, 14336, 28672, 128256):
        for num_rows in range(1, 1 + (MAX_ROWS_SILU if silu_mul else MAX_ROWS)):
            tiles = choose_tiles(num_out, (weight_bytes, x_bytes), num_rows, silu_mul=silu_mul, bulk=bulk)
            assert not tiles.bulk or (bulk and max(tiles.block_n, tiles.block_d) <= 256)
            block_m = next(block for block in (16, 32, 64) if num_rows <= block)
            weight = tiles.num_stages * tiles.block_n * tiles.block_d * weight_bytes * (2 if silu_mul else 1)
            x = tiles.num_stages * block_m * tiles.block_d * x_bytes
            assert weight + x <= MAX_BYTES_IN_FLIGHT <= 227 << 10 and tiles.num_stages >= 2


def test_what_was_measured_is_kept_where_it_fits() -> None:
    """Gate and up of an 8B model on two ranks would need 245,760 bytes for 64 rows; one tile of weights leaves room."""
    assert choose_tiles(7168, (2, 2), 64) == Tiles(64, 128, 4, 5)
    assert choose_tiles(7168, (2, 2), 32, silu_mul=True) == Tiles(64, 128, 4, 5)
    assert Tiles(64, 128, 4, 5).bytes_in_flight(2, 2, 64, True) == 245_760
    assert choose_tiles(7168, (2, 2), 64, silu_mul=True) == Tiles(64, 128, 4, 4)
