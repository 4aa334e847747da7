"""x @ W^T for few rows, near the memory limit: every weight byte is read once and nothing else matters.

A program owns BLOCK_N output features and walks all of D. The weight tile is the tall operand of the dot, the rows of x
the narrow one, so a batch of 1 to 32 costs the same weight traffic. Fused behind the product, because at these sizes a
launch costs as much as the work it starts: the bias, the residual addition, or SiLU(gate) * up for a packed gate-up
weight.

RMSNorm (arXiv:1910.07467) is fused too, in two halves, since the divisor of a row is one number that commutes with the
product: norm(h) W^T = (h * w) W^T / rms(h). The product that ends with h writes h * w and what each program knows of
sum(h^2); the next product adds those parts up and divides. Its input tiles stay as they are in memory: norming them on
the way took longer than a launch (H200).

Where the chip has an engine that copies whole tiles (TMA, Hopper and later) one instruction of one thread asks for a
tile instead of one of each thread for 16 bytes of it; the products of 4,096 outputs then come closer to the limit, with
half as many programs.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.bulk import has_bulk_copies, in_rows_of_16_bytes

MAX_ROWS = 32
"""Beyond this the vendor's kernels are faster (H200); with silu_mul, which they cannot fuse, beyond MAX_ROWS_SILU."""
MAX_ROWS_SILU = 64
"""Of 8-bit weights, whose conversion then takes longer than reading them, MAX_ROWS with silu_mul too."""
MAX_BYTES_IN_FLIGHT = 220 << 10
"""Of the 227 KiB of shared memory that a program can have (H100, H200)."""

MIN_OUT_BULK = 4096
"""Fewer outputs make too few programs of 64 each."""

HALF_SCALE = 16.0


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one product is cut: output features and input features of a tile, warps of a program, loads in flight."""

    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    bulk: bool = False
    """Tiles are copied as a whole (TMA): both operands of 16 bits, rows of a multiple of 16 bytes, at most 256 wide."""

    def bytes_in_flight(self, weight_bytes: int, x_bytes: int, num_rows: int, silu_mul: bool) -> int:
        """Shared memory of all stages, with so many bytes an element: a weight tile, or gate's and up's, and x's."""
        weight = (2 if silu_mul else 1) * self.block_n * weight_bytes
        return self.num_stages * self.block_d * (weight + _block_m(num_rows) * x_bytes)


@dataclass(frozen=True, slots=True)
class Unscaled:
    """A normed input whose rows are still to be divided by their root mean square."""

    x_MD: torch.Tensor
    """h * w: the residual stream times the norm's weight."""
    squares_PM: torch.Tensor
    """float32; the sum of h^2 of row m is the sum over P."""
    eps: float


# Compiled for a tile FULL of rows, whose loads need no mask, and once for all other numbers of rows.
@triton.jit(do_not_specialize=["M"])
def _linear_small_kernel(
    x, weight, scale, residual, bias, out, squares_in, norm_weight, normed, squares_out, eps,
    M, N: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr,
    SILU_MUL: tl.constexpr, SCALED: tl.constexpr, RESIDUAL: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
    BULK: tl.constexpr,
    NORM: tl.constexpr, X_SCALE: tl.constexpr, FULL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    n_inside, m_inside = n < N, m < M
    if not BULK:
        rows = weight + n[:, None].to(tl.int64) * D
        up_rows = rows + N * D
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_D, num_stages=NUM_STAGES):
        d = start + tl.arange(0, BLOCK_D)
        if BULK:  # what lies outside of the matrix reads as 0
            x_tile = x.load([0, start])
            tile = weight.load([tl.program_id(0) * BLOCK_N, start])
        elif EVEN and FULL:
            x_tile = tl.load(x + m[:, None] * D + d[None, :])
            tile = tl.load(rows + d[None, :])
        elif EVEN:
            x_tile = tl.load(x + m[:, None] * D + d[None, :], mask=m_inside[:, None], other=0.0)
            tile = tl.load(rows + d[None, :])
        else:
            x_tile = tl.load(x + m[:, None] * D + d[None, :], mask=m_inside[:, None] & (d < D)[None, :], other=0.0)
            tile = tl.load(rows + d[None, :], mask=n_inside[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(tile.to(x_tile.dtype), tl.trans(x_tile), acc, input_precision="ieee")
        if SILU_MUL:
            if BULK:
                tile = weight.load([N + tl.program_id(0) * BLOCK_N, start])
            elif EVEN:
                tile = tl.load(up_rows + d[None, :])
            else:
                tile = tl.load(up_rows + d[None, :], mask=n_inside[:, None] & (d < D)[None, :], other=0.0)
            up = tl.dot(tile.to(x_tile.dtype), tl.trans(x_tile), up, input_precision="ieee")
    if X_SCALE != 1:
        acc *= X_SCALE
        up *= X_SCALE
    if SCALED:
        acc *= tl.load(scale + n, mask=n_inside, other=0.0)[:, None]
        if SILU_MUL:
            up *= tl.load(scale + N + n, mask=n_inside, other=0.0)[:, None]
    if PARTS > 0:
        part = tl.arange(0, PARTS_BLOCK)
        seen = (part < PARTS)[:, None] & m_inside[None, :]
        squares = tl.sum(tl.load(squares_in + part[:, None] * M + m[None, :], mask=seen, other=0.0), 0)
        inverse_rms = tl.rsqrt(squares / D + eps)
        acc *= inverse_rms[None, :]
        up *= inverse_rms[None, :]
    if BIAS:
        acc += tl.load(bias + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    if SILU_MUL:
        acc = acc / (1.0 + tl.exp(-acc)) * up
    target = m[None, :] * N + n[:, None]
    inside = n_inside[:, None] & m_inside[None, :]
    if RESIDUAL:
        acc += tl.load(residual + target, mask=inside, other=0.0).to(tl.float32)
    value = acc.to(out.dtype.element_ty)
    tl.store(out + target, value, mask=inside)
    if NORM:
        stream = value.to(tl.float32)
        gain = tl.load(norm_weight + n, mask=n_inside, other=0.0).to(tl.float32)
        tl.store(normed + target, (stream * gain[:, None]).to(normed.dtype.element_ty), mask=inside)
        tl.store(squares_out + tl.program_id(0) * M + m, tl.sum(stream * stream, 0), mask=m_inside)


@triton.jit
def _to_half_kernel(x, out, SCALE: tl.constexpr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32) / SCALE
    value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    tl.store(out + at, value.to(tl.float16), mask=at < size)


def to_half(x_MD: torch.Tensor) -> torch.Tensor:
    """x / HALF_SCALE as float16.

    The chip turns 8-bit floats into float16 in one instruction for two, into bfloat16 in four: too slow to keep up
    with memory. Every bfloat16 between 1e-5 and a million keeps all of its bits.
    """
    out_MD = torch.empty_like(x_MD, dtype=torch.float16)
    _to_half_kernel[(triton.cdiv(max(1, x_MD.numel()), 1024),)](
        x_MD, out_MD, HALF_SCALE, x_MD.numel(), BLOCK=1024, num_warps=4
    )
    return out_MD


def linear_small(
    x_MD: torch.Tensor | Unscaled,
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
    return _launch(x_MD, weight_ND, (scale_N, bias_N, residual_MN), tiles, silu_mul=silu_mul)[0]


def linear_small_norm(
    x_MD: torch.Tensor | Unscaled,
    weight_ND: torch.Tensor,
    residual_MN: torch.Tensor,
    norm: tuple[torch.Tensor, float],
    *,
    scale_N: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, Unscaled]:
    """The residual stream h = x @ weight^T + residual, and its RMSNorm with `norm` (weight_N, eps) but for the divisor.

    Not for float16, whose range h * w can leave. The rest as linear_small.
    """
    return _launch(x_MD, weight_ND, (scale_N, bias_N, residual_MN), tiles, norm=norm)


def _launch(
    x: torch.Tensor | Unscaled,
    weight_ND: torch.Tensor,
    factors: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    tiles: Tiles | None,
    *,
    silu_mul: bool = False,
    norm: tuple[torch.Tensor, float] | None = None,
) -> tuple[torch.Tensor, Unscaled]:
    """The output, and without `norm` an Unscaled that says nothing. `factors`: scale, bias, residual."""
    x_MD, squares_PM, eps = (x.x_MD, x.squares_PM, x.eps) if isinstance(x, Unscaled) else (x, None, 0.0)
    scale_N, bias_N, residual_MN = factors
    num_rows, width = x_MD.shape
    num_out = weight_ND.shape[0] // 2 if silu_mul else weight_ND.shape[0]
    sizes = (weight_ND.element_size(), x_MD.element_size())
    bulk = has_bulk_copies(x_MD) and in_rows_of_16_bytes(x_MD, weight_ND)
    cut = tiles or choose_tiles(num_out, sizes, num_rows, silu_mul=silu_mul, bulk=bulk)
    num_programs, num_parts = triton.cdiv(num_out, cut.block_n), 0 if squares_PM is None else len(squares_PM)
    out_MN = x_MD.new_empty(num_rows, num_out)
    unscaled = Unscaled(out_MN, out_MN, 0.0)
    if norm is not None:
        squares = x_MD.new_empty(num_programs, num_rows, dtype=torch.float32)
        unscaled = Unscaled(torch.empty_like(out_MN), squares, norm[1])
    is_half = weight_ND.element_size() == 1 and x_MD.dtype is torch.bfloat16
    source, weight = to_half(x_MD) if is_half else x_MD, weight_ND
    if cut.bulk:
        source = TensorDescriptor.from_tensor(source, [_block_m(num_rows), cut.block_d])
        weight = TensorDescriptor.from_tensor(weight, [cut.block_n, cut.block_d])
    _linear_small_kernel[(num_programs,)](
        source, weight, scale_N if scale_N is not None else x_MD,
        residual_MN if residual_MN is not None else x_MD, bias_N if bias_N is not None else x_MD, out_MN,
        squares_PM if squares_PM is not None else x_MD, norm[0] if norm is not None else x_MD,
        unscaled.x_MD, unscaled.squares_PM, eps,
        num_rows, num_out, width, PARTS=num_parts, PARTS_BLOCK=triton.next_power_of_2(max(1, num_parts)),
        SILU_MUL=silu_mul, SCALED=scale_N is not None, RESIDUAL=residual_MN is not None, BIAS=bias_N is not None,
        EVEN=num_out % cut.block_n == 0 and width % cut.block_d == 0, NORM=norm is not None,
        BULK=cut.bulk,
        X_SCALE=HALF_SCALE if is_half else 1.0, FULL=num_rows == _block_m(num_rows),
        BLOCK_M=_block_m(num_rows), BLOCK_N=cut.block_n, BLOCK_D=cut.block_d, NUM_STAGES=cut.num_stages,
        num_warps=cut.num_warps,
    )  # fmt: skip
    return out_MN, unscaled


def choose_tiles(
    num_out: int, element_bytes: tuple[int, int], num_rows: int = 1, *, silu_mul: bool = False, bulk: bool = False
) -> Tiles:
    """Enough programs for every multiprocessor, tiles in flight within its shared memory.

    Measured in bfloat16 on an H200 over the products of an 8B model, 1 to 32 rows. Of 8-bit weights a tile has twice
    the width, so that as many bytes are in flight, as long as the tile of x leaves room for it.

    Args:
        element_bytes: of the weight and of x.
        bulk: whether tiles can be copied as a whole.
    """
    if bulk and element_bytes == (2, 2) and num_out >= MIN_OUT_BULK:
        tiles = _bulk_tiles(num_out, num_rows, silu_mul=silu_mul)
    else:
        tiles = _measured_tiles(num_out, element_bytes[0], num_rows)
    while tiles.bytes_in_flight(*element_bytes, num_rows, silu_mul) > MAX_BYTES_IN_FLIGHT:
        tiles = replace(tiles, num_stages=tiles.num_stages - 1)
    return tiles


def _bulk_tiles(num_out: int, num_rows: int, *, silu_mul: bool) -> Tiles:
    if num_out >= 8192:
        if num_rows > MAX_ROWS:
            return Tiles(64, 128, 4, 4, bulk=True)
        return Tiles(128, 128, 4, 3 if silu_mul else 4, bulk=True)
    if num_out > 64 * 80:
        return Tiles(64, 256, 4, 4, bulk=True)
    return Tiles(64, 256, 4, 5, bulk=True) if num_rows <= 16 else Tiles(64, 128, 4, 8, bulk=True)


def _measured_tiles(num_out: int, weight_bytes: int, num_rows: int) -> Tiles:
    if weight_bytes == 1 and num_rows <= 16:
        return Tiles(64, 256, 4, 4) if num_out > 64 * 80 else Tiles(32, 512, 4, 4)
    shrink = max(1, weight_bytes // 2)
    if num_out >= 8192:
        return Tiles(64, 128 // shrink, 4, 4)
    return Tiles(64, 128 // shrink, 4, 5) if num_out > 64 * 80 else Tiles(32, 256 // shrink, 4, 4)


def _block_m(num_rows: int) -> int:
    """Rows of a tile of x."""
    return max(16, int(triton.next_power_of_2(num_rows)))
