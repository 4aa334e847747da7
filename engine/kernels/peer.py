"""Sums and joins over the GPUs of one host, whose kernels read each other's memory; CUDA graphs may hold them.

Program `s` of a kernel works with the programs `s` of the other ranks and with nobody else. Their meetings are numbered
1, 2, 3, ... for good; all ranks launch the same kernels in the same order, so they agree on the numbers, and since the
number is kept on the device, a graph that is replayed goes on counting. What a program brings to meeting k:

    1  put it into its slot of this rank's slab, half k % 2
    2  meet: say k to every rank's program s, wait until each has said k here
    3  read the other ranks' slots, half k % 2

Nobody still reads the half that step 1 overwrites: its last readers read it after meeting k - 2, then said k - 1, and
that was heard here before. A slot belongs to one program number whatever the size of the tensor, so kernels with more
or fewer programs cannot meet in it.

A wait that lasts longer than PATIENCE_NS ends the kernel with an error of the device: a rank is lost. A host that knows
so ends it at once, by saying GIVE_UP in place of the others (engine.runtime.collective.peer).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

NUM_SLOTS = 128
"""Programs of the largest kernel: all of them fit a large GPU at once, so that none waits for one that cannot start."""
SLOT_BYTES = 32 << 10
SLAB_BYTES = 2 * NUM_SLOTS * SLOT_BYTES
BLOCK_BYTES = (4 << 10, 16 << 10, SLOT_BYTES)
"""What a program brings to one meeting: the least with which one meeting is enough, since a smaller part is waited for
less; of the largest tensors the most, since then meetings are fewer."""
TWO_SHOT_BYTES = 512 << 10
"""From here on, with four ranks and more, each rank sums a part and the others fetch the sum: less is moved."""
GIVE_UP = 1 << 62
PATIENCE_NS = 120 * 10**9
"""More than a rank takes that compiles its kernels, or a process that was stopped for a while."""


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """One rank's view of the memory that all ranks share; every tensor is on the rank's own device."""

    rank: int
    slabs_W: torch.Tensor
    """int64: address of each rank's slab of SLAB_BYTES."""
    flags_W: torch.Tensor
    """int64: address of each rank's flags, int64 [NUM_SLOTS, W]: the last meeting that rank w's program said here."""
    meetings: torch.Tensor
    """int64 [NUM_SLOTS]: how many meetings each program of this rank has had."""
    patience_ns: int = PATIENCE_NS
    """0 waits for ever."""

    @property
    def num_ranks(self) -> int:
        """All ranks, this one included."""
        return len(self.slabs_W)


@triton.jit
def _give_up():
    tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _slot(slabs, rank, slot, k, SLOTS: tl.constexpr, SLOT: tl.constexpr, dtype: tl.constexpr):
    slab = tl.load(slabs + rank).to(tl.pointer_type(dtype))
    return tl.multiple_of(slab + ((k % 2) * SLOTS + slot) * SLOT, 16)


@triton.jit
def _meet(flags, rank, slot, k, WORLD: tl.constexpr, PATIENCE_NS: tl.constexpr):
    tl.debug_barrier()  # what every thread of the program stored is said by the one thread that says k
    for peer in tl.static_range(WORLD):
        there = tl.load(flags + peer).to(tl.pointer_type(tl.int64))
        tl.atomic_max(there + slot * WORLD + rank, k, sem="release", scope="sys")
    here = tl.load(flags + rank).to(tl.pointer_type(tl.int64)) + slot * WORLD
    for peer in tl.static_range(WORLD):
        if PATIENCE_NS > 0:
            began = globaltimer()
        while tl.atomic_add(here + peer, 0, sem="acquire", scope="sys") < k:
            if PATIENCE_NS > 0:
                if globaltimer() - began > PATIENCE_NS:
                    _give_up()
    tl.debug_barrier()


@triton.jit
def _sum_kernel(
    x, out, slabs, flags, meetings, N, rank, WORLD: tl.constexpr, SLOTS: tl.constexpr, SLOT: tl.constexpr,
    BLOCK: tl.constexpr, TWO_SHOT: tl.constexpr, PATIENCE_NS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    slot = tl.program_id(0)
    k = tl.load(meetings + slot)
    i = tl.arange(0, BLOCK)
    for start in range(slot * BLOCK, N, tl.num_programs(0) * BLOCK):
        at = start + i
        k += 1
        own = tl.load(x + at, mask=at < N, other=0.0)
        tl.store(_slot(slabs, rank, slot, k, SLOTS, SLOT, dtype) + i, own)
        _meet(flags, rank, slot, k, WORLD, PATIENCE_NS)
        if TWO_SHOT:
            PART: tl.constexpr = BLOCK // WORLD
            j = rank * PART + tl.arange(0, PART)
            part = tl.zeros((PART,), tl.float32)
            for peer in tl.static_range(WORLD):
                there = _slot(slabs, peer, slot, k, SLOTS, SLOT, dtype)
                part += tl.load(there + j, cache_modifier=".cg").to(tl.float32)
            k += 1
            tl.store(_slot(slabs, rank, slot, k, SLOTS, SLOT, dtype) + j, part.to(dtype))
            _meet(flags, rank, slot, k, WORLD, PATIENCE_NS)
            for peer in tl.static_range(WORLD):
                there = _slot(slabs, peer, slot, k, SLOTS, SLOT, dtype)
                j = peer * PART + tl.arange(0, PART)
                tl.store(out + start + j, tl.load(there + j, cache_modifier=".cg"), mask=start + j < N)
        else:
            total = tl.zeros((BLOCK,), tl.float32)
            for peer in tl.static_range(WORLD):
                there = _slot(slabs, peer, slot, k, SLOTS, SLOT, dtype)
                total += tl.load(there + i, cache_modifier=".cg").to(tl.float32)
            tl.store(out + at, total.to(dtype), mask=at < N)
    tl.store(meetings + slot, k)


@triton.jit
def _add_norm_kernel(
    x, stream, weight, out, slabs, flags, meetings, D, eps, rank, WORLD: tl.constexpr, SLOTS: tl.constexpr,
    SLOT: tl.constexpr, BLOCK_D: tl.constexpr, PATIENCE_NS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0)
    k = tl.load(meetings + row) + 1
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    own = tl.load(x + row * D + d, mask=inside, other=0.0)
    tl.store(_slot(slabs, rank, row, k, SLOTS, SLOT, dtype) + d, own)
    _meet(flags, rank, row, k, WORLD, PATIENCE_NS)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for peer in tl.static_range(WORLD):
        total += tl.load(_slot(slabs, peer, row, k, SLOTS, SLOT, dtype) + d, cache_modifier=".cg").to(tl.float32)
    total = total.to(dtype).to(tl.float32) + tl.load(stream + row * D + d, mask=inside, other=0.0).to(tl.float32)
    value = total.to(dtype)
    tl.store(stream + row * D + d, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
    normed = (wide * scale).to(dtype)
    tl.store(out + row * D + d, normed * tl.load(weight + d, mask=inside, other=0.0), mask=inside)
    tl.store(meetings + row, k)


@triton.jit
def _join_kernel(
    x, out, slabs, flags, meetings, N, V, rank, WORLD: tl.constexpr, SLOTS: tl.constexpr, SLOT: tl.constexpr,
    BLOCK: tl.constexpr, PATIENCE_NS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    slot = tl.program_id(0)
    k = tl.load(meetings + slot)
    i = tl.arange(0, BLOCK)
    for start in range(slot * BLOCK, N, tl.num_programs(0) * BLOCK):
        at = start + i
        k += 1
        own = tl.load(x + at, mask=at < N, other=0)
        tl.store(_slot(slabs, rank, slot, k, SLOTS, SLOT, dtype) + i, own)
        _meet(flags, rank, slot, k, WORLD, PATIENCE_NS)
        target = out + (at // V).to(tl.int64) * V * WORLD + at % V
        for peer in tl.static_range(WORLD):
            there = _slot(slabs, peer, slot, k, SLOTS, SLOT, dtype)
            tl.store(target + peer * V, tl.load(there + i, cache_modifier=".cg"), mask=at < N)
    tl.store(meetings + slot, k)


def peer_sum(x: torch.Tensor, memory: PeerMemory, two_shot: bool | None = None) -> torch.Tensor:
    """The sum over all ranks, added in float32 in their order, in x's dtype. x must be contiguous.

    two_shot: chosen by size if None; possible where the number of ranks is a power of two.
    """
    out = torch.empty_like(x)
    num_ranks = memory.num_ranks
    if two_shot is None:
        two_shot = num_ranks >= 4 and num_ranks & (num_ranks - 1) == 0 and x.nbytes >= TWO_SHOT_BYTES
    if x.numel():
        block, grid = _cut(x)
        _sum_kernel[grid](
            x, out, memory.slabs_W, memory.flags_W, memory.meetings, x.numel(), memory.rank, WORLD=num_ranks,
            SLOTS=NUM_SLOTS, SLOT=SLOT_BYTES // x.element_size(), BLOCK=block, TWO_SHOT=two_shot,
            PATIENCE_NS=memory.patience_ns,
            num_warps=_num_warps(block // (num_ranks if two_shot else 1), x.element_size()),
        )  # fmt: skip
    return out


def fits_slots(x_TD: torch.Tensor) -> bool:
    """Whether `peer_add_norm` takes it: rows that fit a slot, and no more of them than slots."""
    return len(x_TD) <= NUM_SLOTS and triton.next_power_of_2(x_TD.shape[1]) * x_TD.element_size() <= SLOT_BYTES


def peer_add_norm(
    x_TD: torch.Tensor, stream_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, memory: PeerMemory
) -> torch.Tensor:
    """Add the sum of x over all ranks into `stream_TD` in place, and return the RMSNorm of that. All contiguous.

    Rounds as peer_sum and then engine.kernels.norm.add_rms_norm do.
    """
    out_TD = torch.empty_like(x_TD)
    num_tokens, width = x_TD.shape
    if num_tokens:
        block = triton.next_power_of_2(width)
        _add_norm_kernel[(num_tokens,)](
            x_TD, stream_TD, weight_D, out_TD, memory.slabs_W, memory.flags_W, memory.meetings, width, eps,
            memory.rank, WORLD=memory.num_ranks, SLOTS=NUM_SLOTS, SLOT=SLOT_BYTES // x_TD.element_size(),
            BLOCK_D=block, PATIENCE_NS=memory.patience_ns, num_warps=_num_warps(block, x_TD.element_size()),
        )  # fmt: skip
    return out_TD


def peer_join(x_SV: torch.Tensor, memory: PeerMemory) -> torch.Tensor:
    """The ranks' columns side by side, in their order. x must be contiguous."""
    num_rows, width = x_SV.shape
    out = x_SV.new_empty(num_rows, width * memory.num_ranks)
    if x_SV.numel():
        block, grid = _cut(x_SV)
        _join_kernel[grid](
            x_SV, out, memory.slabs_W, memory.flags_W, memory.meetings, x_SV.numel(), width, memory.rank,
            WORLD=memory.num_ranks, SLOTS=NUM_SLOTS, SLOT=SLOT_BYTES // x_SV.element_size(), BLOCK=block,
            PATIENCE_NS=memory.patience_ns, num_warps=_num_warps(block, x_SV.element_size()),
        )  # fmt: skip
    return out


def _cut(x: torch.Tensor) -> tuple[int, tuple[int]]:
    """Elements of a program's part, and programs. The same on every rank: both follow from the tensor's size alone."""
    enough = (size for size in BLOCK_BYTES if x.nbytes <= NUM_SLOTS * size)
    block = next(enough, SLOT_BYTES) // x.element_size()
    return block, (min(NUM_SLOTS, triton.cdiv(x.numel(), block)),)


def _num_warps(block: int, element_bytes: int) -> int:
    """Two loads of 16 bytes a thread."""
    return max(1, min(16, block * element_bytes // (32 * 32)))
