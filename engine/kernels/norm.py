"""RMSNorm, alone and fused with the residual addition before it (Zhang & Sennrich 2019, arXiv:1910.07467).

One program a token; the row stays in registers between the sum of squares and the scaling, so each tensor is read once
and written once. Arithmetic in float32; the normalized value is rounded to the input's dtype before the weight
multiplies it, as the reference implementations of the Llama family do.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm_kernel(x, residual, weight, out, D, eps, HAS_RESIDUAL: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    value = tl.load(x + row * D + d, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        total = value.to(tl.float32) + tl.load(residual + row * D + d, mask=inside, other=0.0).to(tl.float32)
        value = total.to(value.dtype)
        tl.store(residual + row * D + d, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
    normed = (wide * scale).to(value.dtype)
    tl.store(out + row * D + d, normed * tl.load(weight + d, mask=inside, other=0.0), mask=inside)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`, row by row. x must be contiguous."""
    return _launch(x_TD, None, weight_D, eps)


def add_rms_norm(x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x into `residual_TD` in place and return the RMSNorm of the sum. Both must be contiguous."""
    return _launch(x_TD, residual_TD, weight_D, eps)


def _launch(x_TD: torch.Tensor, residual_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    out_TD = torch.empty_like(x_TD)
    num_tokens, width = x_TD.shape
    if num_tokens:
        block = triton.next_power_of_2(width)
        _rms_norm_kernel[(num_tokens,)](
            x_TD, residual_TD if residual_TD is not None else x_TD, weight_D, out_TD, width, eps,
            HAS_RESIDUAL=residual_TD is not None, BLOCK_D=block, num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return out_TD
