"""SiLU(x gate^T) * (x up^T) for 80 to 128 rows: nothing but the product of both ever reaches memory.

The vendor's product of so many rows is as fast, but it writes twice as much and another kernel reads that again: 2 % of
a step of 128 rows (H200). With more rows, and with so few that half of a tile is empty, its own cuts win that back; up
to 64 see engine.kernels.linear_small.

Tiles are copied as a whole (engine.kernels.bulk), so this is for Hopper and later, and operands of 16 bits.

Shape suffixes: M rows, D width, N outputs.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.bulk import has_bulk_copies, in_rows_of_16_bytes

MIN_ROWS, MAX_ROWS = 80, 128
BLOCK_N, BLOCK_D = 128, 64
"""Outputs and width of a tile: the best of eight cuts of an 8B model's product (14,336 x 4,096)."""


@triton.jit
def _gate_up_kernel(
    x, weight, out, M, N: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_D, num_stages=NUM_STAGES):  # what lies outside of a matrix reads as 0
        x_tile = x.load([0, start])
        gate = tl.dot(x_tile, weight.load([first, start]).T, gate, input_precision="ieee")
        up = tl.dot(x_tile, weight.load([N + first, start]).T, up, input_precision="ieee")
    m, n = tl.arange(0, BLOCK_M)[:, None], first + tl.arange(0, BLOCK_N)[None, :]
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + m * N + n, value.to(out.dtype.element_ty), mask=(m < M) & (n < N))


def takes(x_MD: torch.Tensor, weight_2ND: torch.Tensor) -> bool:
    """Whether this is the way to compute it on the device of these contiguous operands."""
    fits = MIN_ROWS <= len(x_MD) <= MAX_ROWS and x_MD.element_size() == weight_2ND.element_size() == 2
    return fits and has_bulk_copies(x_MD) and in_rows_of_16_bytes(x_MD, weight_2ND)


def gate_up(x_MD: torch.Tensor, weight_2ND: torch.Tensor) -> torch.Tensor:
    """out_MN in x's dtype, rounded once; the weight is [gate; up] stacked."""
    num_rows, width = x_MD.shape
    num_out = len(weight_2ND) // 2
    out_MN = x_MD.new_empty(num_rows, num_out)
    _gate_up_kernel[(triton.cdiv(num_out, BLOCK_N),)](
        TensorDescriptor.from_tensor(x_MD, [MAX_ROWS, BLOCK_D]),
        TensorDescriptor.from_tensor(weight_2ND, [BLOCK_N, BLOCK_D]),
        out_MN, num_rows, num_out, width, BLOCK_M=MAX_ROWS, BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D, NUM_STAGES=4, num_warps=8,
    )  # fmt: skip
    return out_MN
