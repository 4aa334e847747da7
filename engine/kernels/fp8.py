"""Products of 8-bit floats: activations quantized row by row, alone or behind SiLU(gate) * up, and the product itself.

W8A8: each row of x has its own scale, found as its largest magnitude over 448, each output feature of the weight too:

    out[t, n] = x_scale[t] * weight_scale[n] * sum_d x8[t, d] * weight8[n, d]

Shape suffixes: T tokens, I in features, O out features, F feed-forward.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.core.errors import InvalidRequest

MULTIPLE = 16
"""Both features of a product must be multiples of this: the vendor's kernels load 16 bytes at a time."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix of 8-bit floats, one scale a row: the row is values_TI[t] * scale_T1[t]."""

    values_TI: torch.Tensor
    scale_T1: torch.Tensor
    """float32"""
    dtype: torch.dtype
    """Of the matrix that it stands for."""

    def __len__(self) -> int:
        return len(self.values_TI)


@triton.jit
def _quantize_kernel(x, out, scales, F, SILU_MUL: tl.constexpr, BLOCK_F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK_F)
    inside = f < F
    if SILU_MUL:
        gate = tl.load(x + row * 2 * F + f, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x + row * 2 * F + F + f, mask=inside, other=0.0)
        value = ((gate / (1.0 + tl.exp(-gate))).to(up.dtype) * up).to(tl.float32)
    else:
        value = tl.load(x + row * F + f, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / 448.0
    scaled = tl.minimum(tl.maximum(value / scale, -448.0), 448.0)
    tl.store(out + row * F + f, scaled.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def quantize(x_TI: torch.Tensor) -> Quantized:
    """Round every row to 8 bits. Must be contiguous."""
    return _launch(x_TI, x_TI.shape[1], silu_mul=False)


def silu_mul_quantize(gate_up_T2F: torch.Tensor) -> Quantized:
    """SiLU(gate) * up, rounded to 8 bits; the input holds [gate | up] along its last dimension, contiguous."""
    return _launch(gate_up_T2F, gate_up_T2F.shape[1] // 2, silu_mul=True)


def _launch(x: torch.Tensor, width: int, *, silu_mul: bool) -> Quantized:
    values = x.new_empty(len(x), width, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    if len(x):
        block = triton.next_power_of_2(width)
        _quantize_kernel[(len(x),)](
            x, values, scales, width, SILU_MUL=silu_mul, BLOCK_F=block, num_warps=min(16, max(1, block // 512))
        )
    return Quantized(values, scales, x.dtype)


def scaled_product(
    x: torch.Tensor | Quantized, weight_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ (weight * scale)^T + bias on CUDA, out_TO in x's dtype."""
    x8 = x if isinstance(x, Quantized) else quantize(x.contiguous())
    out_TO: torch.Tensor = torch._scaled_mm(
        x8.values_TI,
        weight_OI.t(),
        scale_a=x8.scale_T1,
        scale_b=scale_O[None],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    out_TO = out_TO.to(x8.dtype)
    return out_TO if bias_O is None else out_TO.add_(bias_O)


def check_widths(widths: list[int]) -> None:
    """Raises InvalidRequest: a product has a width that the kernels cannot take."""
    wrong = sorted({width for width in widths if width % MULTIPLE})
    if wrong:
        raise InvalidRequest(f"quantization fp8 needs widths that are multiples of {MULTIPLE}, not {wrong[0]}")
