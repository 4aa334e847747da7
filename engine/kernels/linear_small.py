"""x @ W^T for few rows, near the memory limit: every weight byte is read once and nothing else matters.

A program owns BLOCK_N output features and walks all of D. The weight tile is the tall operand of the dot, the rows of x
the narrow one, so a batch of 1 to 32 costs the same weight traffic. Fused behind the product, because at these sizes a
launch costs as much as the work it starts: the bias, the residual addition, or SiLU(gate) * up for a packed gate-up
weight. RMSNorm stays apart: repeated by every program it took longer than its own launch (H200).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MAX_ROWS = 32
"""Beyond this the vendor's kernels are faster (H200); with silu_mul, which they cannot fuse, beyond MAX_ROWS_SILU."""
MAX_ROWS_SILU = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one product is cut: output features and input features of a tile, warps of a program, loads in flight."""

    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


# M only masks rows: a kernel for each of its divisors would be the same code, compiled again.
@triton.jit(do_not_specialize=["M"])
def _linear_small_kernel(
    x, weight, scale, residual, bias, out, M, N: tl.constexpr, D: tl.constexpr,
    SILU_MUL: tl.constexpr, SCALED: tl.constexpr, RESIDUAL: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    n_inside, m_inside = n < N, m < M
    rows = weight + n[:, None].to(tl.int64) * D
    up_rows = rows + N * D
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_D, num_stages=NUM_STAGES):
        d = start + tl.arange(0, BLOCK_D)
        if EVEN:
            x_tile = tl.load(x + m[:, None] * D + d[None, :], mask=m_inside[:, None], other=0.0)
            tile = tl.load(rows + d[None, :])
        else:
            x_tile = tl.load(x + m[:, None] * D + d[None, :], mask=m_inside[:, None] & (d < D)[None, :], other=0.0)
            tile = tl.load(rows + d[None, :], mask=n_inside[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(tile.to(x_tile.dtype), tl.trans(x_tile), acc, input_precision="ieee")
        if SILU_MUL:
            if EVEN:
                tile = tl.load(up_rows + d[None, :])
            else:
                tile = tl.load(up_rows + d[None, :], mask=n_inside[:, None] & (d < D)[None, :], other=0.0)
            up = tl.dot(tile.to(x_tile.dtype), tl.trans(x_tile), up, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scale + n, mask=n_inside, other=0.0)[:, None]
        if SILU_MUL:
            up *= tl.load(scale + N + n, mask=n_inside, other=0.0)[:, None]
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
    scale_N: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    residual_MN: torch.Tensor | None = None,
    silu_mul: bool = False,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """x @ weight^T for at most MAX_ROWS rows (MAX_ROWS_SILU with silu_mul), all operands contiguous.

    silu_mul: weight is [gate; up] stacked, the output has half its rows and there is no bias. scale_N: float32, one
    for each row of an 8-bit weight, which is converted to x's dtype as it is read. residual_MN: added to the output.
    Returns out_MN in x's dtype.
    """
    num_rows, width = x_MD.shape
    num_out = weight_ND.shape[0] // 2 if silu_mul else weight_ND.shape[0]
    cut = tiles or choose_tiles(num_out, weight_ND.element_size(), num_rows)
    out_MN = x_MD.new_empty(num_rows, num_out)
    _linear_small_kernel[(triton.cdiv(num_out, cut.block_n),)](
        x_MD, weight_ND, scale_N if scale_N is not None else x_MD,
        residual_MN if residual_MN is not None else x_MD, bias_N if bias_N is not None else x_MD, out_MN,
        num_rows, num_out, width, SILU_MUL=silu_mul, SCALED=scale_N is not None, RESIDUAL=residual_MN is not None,
        BIAS=bias_N is not None,
        EVEN=num_out % cut.block_n == 0 and width % cut.block_d == 0, BLOCK_M=max(16, triton.next_power_of_2(num_rows)),
        BLOCK_N=cut.block_n, BLOCK_D=cut.block_d, NUM_STAGES=cut.num_stages, num_warps=cut.num_warps,
    )  # fmt: skip
    return out_MN


def choose_tiles(num_out: int, element_bytes: int, num_rows: int = 1) -> Tiles:
    """Enough programs for every multiprocessor, tiles in flight within its shared memory.

    Measured in bfloat16 on an H200 over the products of an 8B model, 1 to 32 rows. Of 8-bit weights a tile has twice
    the width, so that as many bytes are in flight, as long as the tile of x leaves room for it.
    """
    if element_bytes == 1 and num_rows <= 16:
        return Tiles(64, 256, 4, 4) if num_out > 64 * 80 else Tiles(32, 512, 4, 4)
    shrink = max(1, element_bytes // 2)
    if num_out >= 8192:
        return Tiles(64, 128 // shrink, 4, 4)
    return Tiles(64, 128 // shrink, 4, 5) if num_out > 64 * 80 else Tiles(32, 256 // shrink, 4, 4)
