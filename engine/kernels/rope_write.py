"""q/k norm, rotary embedding and the write of k and v into the page slab, in one kernel.

Input is the packed product of the fused QKV projection; q leaves rotated, k and v land in their slots. Without this
kernel a step reads and writes q and k three times per layer and pays five launches.

    qkv_TX  [ q: H heads | k: K heads | v: K heads ] x E
    slot of a token = page * page_size + position in page; -1 writes nothing (padding rows of a graph)

Rotary embedding: Su et al. 2021 (arXiv:2104.09864), halves rotated as in the Hugging Face Llama family.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class QKNorm:
    """Per-head RMSNorm weights of Qwen3-style attention, each of head-dim length."""

    q_weight_E: torch.Tensor
    k_weight_E: torch.Tensor
    eps: float


@triton.jit
def _rope_write_kernel(
    qkv, q_out, k_cache, v_cache, cos_sin, positions, slots, q_weight, k_weight, eps,
    page_stride, slot_stride, head_stride,
    PAGE_SIZE: tl.constexpr, H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, HALF_BLOCK)
    inside = half < E // 2
    source = qkv + token * (H + 2 * K) * E + head * E
    low_raw = tl.load(source + half, mask=inside, other=0.0)
    high_raw = tl.load(source + E // 2 + half, mask=inside, other=0.0)
    slot = tl.load(slots + token).to(tl.int64)
    page_start = (slot // PAGE_SIZE) * page_stride + (slot % PAGE_SIZE) * slot_stride

    if head >= H + K:
        target = v_cache + page_start + (head - H - K) * head_stride
        keep = inside & (slot >= 0)
        tl.store(target + half, low_raw.to(v_cache.dtype.element_ty), mask=keep)
        tl.store(target + E // 2 + half, high_raw.to(v_cache.dtype.element_ty), mask=keep)
    else:
        low, high = low_raw.to(tl.float32), high_raw.to(tl.float32)
        if HAS_NORM:
            scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / E + eps)
            weight = q_weight if head < H else k_weight
            low_weight = tl.load(weight + half, mask=inside, other=0.0)
            high_weight = tl.load(weight + E // 2 + half, mask=inside, other=0.0)
            low = ((low * scale).to(low_raw.dtype) * low_weight).to(tl.float32)
            high = ((high * scale).to(high_raw.dtype) * high_weight).to(tl.float32)
        position = tl.load(positions + token).to(tl.int64)
        cos = tl.load(cos_sin + position * E + half, mask=inside, other=0.0)
        sin = tl.load(cos_sin + position * E + E // 2 + half, mask=inside, other=0.0)
        rotated_low = low * cos - high * sin
        rotated_high = high * cos + low * sin
        if head < H:
            target = q_out + token * H * E + head * E
            tl.store(target + half, rotated_low.to(q_out.dtype.element_ty), mask=inside)
            tl.store(target + E // 2 + half, rotated_high.to(q_out.dtype.element_ty), mask=inside)
        else:
            target = k_cache + page_start + (head - H) * head_stride
            keep = inside & (slot >= 0)
            tl.store(target + half, rotated_low.to(k_cache.dtype.element_ty), mask=keep)
            tl.store(target + E // 2 + half, rotated_high.to(k_cache.dtype.element_ty), mask=keep)


def rope_and_write(
    qkv_TX: torch.Tensor,
    cos_sin_PE: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    num_heads: int,
    norm: QKNorm | None = None,
) -> torch.Tensor:
    """Return q_THE rotated; write rotated k and plain v of every token with a slot >= 0 into the caches.

    cos_sin_PE: float32, row p = [cos(E/2) | sin(E/2)] of position p, attention scaling included.
    caches: (k, v) views [num_pages, page_size, K, E] of one layer of the slab; equal strides, last dimension dense.
    """
    k_cache, v_cache = caches
    page_size, num_kv_heads, head_dim = k_cache.shape[1:]
    num_tokens = qkv_TX.shape[0]
    q_THE = qkv_TX.new_empty(num_tokens, num_heads, head_dim)
    if num_tokens:
        weights = (norm.q_weight_E, norm.k_weight_E, norm.eps) if norm else (cos_sin_PE, cos_sin_PE, 0.0)
        _rope_write_kernel[(num_tokens, num_heads + 2 * num_kv_heads)](
            qkv_TX, q_THE, k_cache, v_cache, cos_sin_PE, positions_T, slots_T, *weights,
            k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
            PAGE_SIZE=page_size, H=num_heads, K=num_kv_heads, E=head_dim,
            HALF_BLOCK=triton.next_power_of_2(head_dim // 2), HAS_NORM=norm is not None, num_warps=1,
        )  # fmt: skip
    return q_THE
