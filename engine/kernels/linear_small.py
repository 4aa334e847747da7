"""x @ W^T for few rows, near the memory limit: every weight byte is read once and nothing else matters.

A program owns BLOCK_N output features and walks all of D. The weight tile is the tall operand of the dot, the rows of x
the narrow one, so a batch of 1 to 16 costs the same weight traffic. Fused around the product, because at these sizes a
launch costs as much as the work it starts:

    before: RMSNorm of x (each program sums its own squares: x is a few kilobytes and lives in L2)
    after:  the residual addition, or SiLU(gate) * up for a packed gate-up weight
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one product is cut: output features and input features of a tile, warps of a program, loads in flight."""

    block_n: int = 16
    block_d: int = 256
    num_warps: int = 4
    num_stages: int = 4


@triton.jit
def _linear_small_kernel(
    x, weight, norm_weight, residual, bias, out, M, N, eps,
    D: tl.constexpr, NORM: tl.constexpr, SILU_MUL: tl.constexpr, RESIDUAL: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    n_inside, m_inside = n < N, m < M
    rows = weight + n[:, None].to(tl.int64) * D
    up_rows = rows + N.to(tl.int64) * D
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        d_inside = d < D
        x_tile = tl.load(x + m[None, :] * D + d[:, None], mask=d_inside[:, None] & m_inside[None, :], other=0.0)
        if NORM:
            wide = x_tile.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
            x_tile = (wide * tl.load(norm_weight + d, mask=d_inside, other=0.0).to(tl.float32)[:, None]).to(
                x_tile.dtype
            )
        tile_inside = n_inside[:, None] & d_inside[None, :]
        acc = tl.dot(tl.load(rows + d[None, :], mask=tile_inside, other=0.0), x_tile, acc)
        if SILU_MUL:
            up = tl.dot(tl.load(up_rows + d[None, :], mask=tile_inside, other=0.0), x_tile, up)
    if NORM:  # the scale is one number a row, so it can follow the product
        scale = tl.rsqrt(squares / D + eps)[None, :]
        acc = acc * scale
        up = up * scale
    if BIAS:
        acc += tl.load(bias + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    if SILU_MUL:
        acc = acc / (1.0 + tl.exp(-acc)) * up
    target = m[None, :] * N + n[:, None]
    inside = n_inside[:, None] & m_inside[None, :]
    if RESIDUAL:
        acc += tl.load(residual + target, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + target, acc.to(out.dtype.element_ty), mask=inside)


def linear_small(
    x_MD: torch.Tensor,
    weight_ND: torch.Tensor,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    silu_mul: bool = False,
    residual_MN: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """x @ weight^T for at most MAX_ROWS rows, with the optional stages that the module's text lists.

    norm: (weight_D, eps) of an RMSNorm applied to x first. silu_mul: weight is [gate; up] stacked, the output has
    half its rows. residual_MN: added to the output. Returns out_MN in x's dtype.
    """
    cut = tiles or Tiles()
    num_rows, width = x_MD.shape
    num_out = weight_ND.shape[0] // 2 if silu_mul else weight_ND.shape[0]
    out_MN = x_MD.new_empty(num_rows, num_out)
    norm_weight, eps = norm if norm is not None else (x_MD, 0.0)
    _linear_small_kernel[(triton.cdiv(num_out, cut.block_n),)](
        x_MD, weight_ND, norm_weight,
        residual_MN if residual_MN is not None else x_MD, bias_N if bias_N is not None else x_MD,
        out_MN, num_rows, num_out, eps,
        D=width, NORM=norm is not None, SILU_MUL=silu_mul, RESIDUAL=residual_MN is not None, BIAS=bias_N is not None,
        BLOCK_M=16, BLOCK_N=cut.block_n, BLOCK_D=cut.block_d,
        num_warps=cut.num_warps, num_stages=cut.num_stages,
    )  # fmt: skip
    return out_MN
