"""q/k norm, rotary embedding and the write of k and v into the page slab, in one kernel.

The packed product of the fused QKV projection is rotated in place, and k and v are copied to their slots. Without this
kernel a step reads and writes q and k three times per layer and pays five launches.

    qkv_TX  [ q: H heads | k: K heads | v: K heads ] x E
    slot of a token = page * page_size + position in page; -1 writes nothing (padding rows of a graph)

Rotary embedding: Su et al. 2021 (arXiv:2104.09864), halves rotated as in the Hugging Face Llama family.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.caches import Caches

BLOCK_HEADS = 16


@triton.jit
def _stored(value, factor, FP8: tl.constexpr):
    """What goes into a page of 8-bit values is scaled, and saturated where the conversion would make NaN."""
    if FP8:
        value = tl.minimum(tl.maximum(value.to(tl.float32) * factor, -448.0), 448.0)
    return value


@triton.jit
def _rope_write_kernel(
    qkv, k_cache, v_cache, cos_sin, positions, slots, qk_weight, eps, k_factor, v_factor,
    page_stride, slot_stride, head_stride,
    PAGE_SIZE: tl.constexpr, H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr, HAS_NORM: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = tl.arange(0, HALF_BLOCK)
    half_inside = (half < E // 2)[None, :]
    inside = (head < H + 2 * K)[:, None] & half_inside
    source = qkv + token * (H + 2 * K) * E + head[:, None] * E + half[None, :]
    low_raw = tl.load(source, mask=inside, other=0.0)
    high_raw = tl.load(source + E // 2, mask=inside, other=0.0)
    low, high = low_raw.to(tl.float32), high_raw.to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / E + eps)[:, None]
        weights = qk_weight + head[:, None] * E + half[None, :]
        normed = (head < H + K)[:, None] & half_inside
        low = ((low * scale).to(low_raw.dtype) * tl.load(weights, mask=normed, other=0.0)).to(tl.float32)
        high = ((high * scale).to(low_raw.dtype) * tl.load(weights + E // 2, mask=normed, other=0.0)).to(tl.float32)
    position = tl.load(positions + token).to(tl.int64)
    cos = tl.load(cos_sin + position * E + half, mask=half < E // 2, other=0.0)[None, :]
    sin = tl.load(cos_sin + position * E + E // 2 + half, mask=half < E // 2, other=0.0)[None, :]
    rotated_low, rotated_high = low * cos - high * sin, high * cos + low * sin

    rotates = (head < H + K)[:, None] & half_inside
    tl.store(source, rotated_low.to(qkv.dtype.element_ty), mask=rotates)
    tl.store(source + E // 2, rotated_high.to(qkv.dtype.element_ty), mask=rotates)

    slot = tl.load(slots + token).to(tl.int64)
    in_cache = (slot // PAGE_SIZE) * page_stride + (slot % PAGE_SIZE) * slot_stride
    is_key = ((head >= H) & (head < H + K) & (slot >= 0))[:, None] & half_inside
    target = k_cache + in_cache + (head[:, None] - H) * head_stride + half[None, :]
    tl.store(target, _stored(rotated_low, k_factor, FP8).to(k_cache.dtype.element_ty), mask=is_key)
    tl.store(target + E // 2, _stored(rotated_high, k_factor, FP8).to(k_cache.dtype.element_ty), mask=is_key)
    is_value = ((head >= H + K) & (head < H + 2 * K) & (slot >= 0))[:, None] & half_inside
    target = v_cache + in_cache + (head[:, None] - H - K) * head_stride + half[None, :]
    tl.store(target, _stored(low_raw, v_factor, FP8).to(v_cache.dtype.element_ty), mask=is_value)
    tl.store(target + E // 2, _stored(high_raw, v_factor, FP8).to(v_cache.dtype.element_ty), mask=is_value)


def rope_and_write(
    qkv_TX: torch.Tensor,
    cos_sin_PE: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    caches: Caches,
    num_heads: int,
    qk_norm: tuple[torch.Tensor, float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate q and k inside qkv; copy k and v of every token with a slot >= 0 into the caches.

    cos_sin_PE: float32, row p = [cos(E/2) | sin(E/2)] of position p, attention scaling included.
    qk_norm: (weight of each query head, then of each key head, [H + K, E]; eps) of Qwen3-style attention.
    Returns q_THE, k_TKE and v_TKE, views of qkv_TX.
    """
    k_cache, v_cache = caches.k, caches.v
    page_size, num_kv_heads, head_dim = k_cache.shape[1:]
    num_tokens = qkv_TX.shape[0]
    if num_tokens:
        weight, eps = qk_norm if qk_norm is not None else (cos_sin_PE, 0.0)
        _rope_write_kernel[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, BLOCK_HEADS))](
            qkv_TX, k_cache, v_cache, cos_sin_PE, positions_T, slots_T, weight, eps,
            1.0 / caches.k_scale, 1.0 / caches.v_scale, k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
            PAGE_SIZE=page_size, H=num_heads, K=num_kv_heads, E=head_dim,
            HALF_BLOCK=triton.next_power_of_2(head_dim // 2), HEADS=BLOCK_HEADS, HAS_NORM=qk_norm is not None,
            FP8=k_cache.dtype == torch.float8_e4m3fn, num_warps=2,
        )  # fmt: skip
    heads = qkv_TX.view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    q_THE, k_TKE, v_TKE = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return q_THE, k_TKE, v_TKE
