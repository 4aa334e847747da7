"""Attention over the page slab in Triton: for GPUs that no vendor kernel knows, and a second opinion for the others.

Online softmax over key tiles (Milakov & Gimelshein 2018, arXiv:1805.02867; FlashAttention, arXiv:2205.14135). The query
heads that share a kv head are packed into one tile, so a key tile is loaded once for the group. Long contexts with few
queries are cut into splits whose partial results a second kernel combines by their log-sum-exp.

    sequence  [ 0 ........ cached ........ | ...... new ...... ]
                                           cache_seqlen - num_q    cache_seqlen
    query i of the sequence stands at position cache_seqlen - num_q + i and sees keys 0 .. that position
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.caches import Caches

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """cu_seqlens_q [B + 1], cache_seqlens [B] (new tokens included), page_table [B, P], all int32; max_num_q tokens."""

    cu_seqlens_q: torch.Tensor
    cache_seqlens: torch.Tensor
    page_table: torch.Tensor
    max_num_q: int


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """softmax_scale; window: keys seen before and including a query's own position, 0 for all; soft_cap: 0 for none."""

    softmax_scale: float
    window: int = 0
    soft_cap: float = 0.0


# The table's width differs from step to step; compiling for its divisors only makes more variants.
@triton.jit(do_not_specialize=["table_stride"])
def _paged_attention_kernel(
    q, k_cache, v_cache, out, lse, cu_seqlens_q, cache_seqlens, page_table, table_stride, q_stride,
    page_stride, slot_stride, head_stride, out_split_stride, lse_split_stride, softmax_scale, v_scale,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, PAGE_SIZE: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
    E: tl.constexpr, G_BLOCK: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
    NUM_SPLITS: tl.constexpr, NUM_STAGES: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0), tl.program_id(1)
    kv_head, split = tl.program_id(2) // NUM_SPLITS, tl.program_id(2) % NUM_SPLITS
    first_q, last_q = tl.load(cu_seqlens_q + row), tl.load(cu_seqlens_q + row + 1)
    num_q, num_keys = last_q - first_q, tl.load(cache_seqlens + row)
    tile_start = tile * BLOCK_Q
    if tile_start < num_q:
        packed = tl.arange(0, BLOCK_Q * G_BLOCK)  # query-major: the heads of one query stand together
        query = tile_start + packed // G_BLOCK
        head = kv_head * G + packed % G_BLOCK
        position = num_keys - num_q + query
        e = tl.arange(0, E_BLOCK)
        row_inside = (query < num_q) & (packed % G_BLOCK < G)
        q_inside = row_inside[:, None] & (e < E)[None, :]
        token = (first_q + query).to(tl.int64)
        q_tile = tl.load(q + (token * q_stride + head * E)[:, None] + e[None, :], mask=q_inside, other=0.0)

        tile_end = tl.minimum(num_keys, num_keys - num_q + tile_start + BLOCK_Q)
        tile_begin = 0
        if WINDOW > 0:
            tile_begin = tl.maximum(0, num_keys - num_q + tile_start - WINDOW + 1)
        span = tl.cdiv(tl.cdiv(tile_end - tile_begin, NUM_SPLITS), BLOCK_KV) * BLOCK_KV
        begin = tile_begin + split * span
        end = tl.minimum(tile_end, begin + span)

        top = tl.full((BLOCK_Q * G_BLOCK,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_Q * G_BLOCK,), tl.float32)
        acc = tl.zeros((BLOCK_Q * G_BLOCK, E_BLOCK), tl.float32)
        for start in tl.range(begin, end, BLOCK_KV, num_stages=NUM_STAGES):
            key = start + tl.arange(0, BLOCK_KV)
            if ALIGNED:  # a key tile lies inside one page
                page = tl.load(page_table + row * table_stride + start // PAGE_SIZE).to(tl.int64)
                in_page = start % PAGE_SIZE + tl.arange(0, BLOCK_KV)
            else:
                page = tl.load(page_table + row * table_stride + key // PAGE_SIZE, mask=key < end, other=0).to(tl.int64)
                in_page = key % PAGE_SIZE
            offset = page * page_stride + in_page * slot_stride + kv_head * head_stride
            kv_inside = (key < end)[:, None] & (e < E)[None, :]
            k_tile = tl.load(k_cache + offset[:, None] + e[None, :], mask=kv_inside, other=0.0).to(q_tile.dtype)
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * softmax_scale
            if SOFT_CAP > 0:
                scaled = tl.exp(2.0 * score / SOFT_CAP)
                score = SOFT_CAP * (1.0 - 2.0 / (scaled + 1.0))
            seen = (key[None, :] <= position[:, None]) & (key < end)[None, :]
            if WINDOW > 0:
                seen = seen & (key[None, :] > position[:, None] - WINDOW)
            score = tl.where(seen, score * LOG2_E, -float("inf"))
            new_top = tl.maximum(top, tl.max(score, 1))
            anchor = tl.where(
                new_top == -float("inf"), 0.0, new_top
            )  # a tile that a query cannot see must not make NaN
            weight = tl.exp2(score - anchor[:, None])
            decay = tl.exp2(top - anchor)
            v_tile = tl.load(v_cache + offset[:, None] + e[None, :], mask=kv_inside, other=0.0).to(q_tile.dtype)
            acc = acc * decay[:, None] + tl.dot(weight.to(q_tile.dtype), v_tile, input_precision="ieee")
            total = total * decay + tl.sum(weight, 1)
            top = new_top

        result = acc * v_scale / tl.where(total > 0, total, 1.0)[:, None]
        target = out + split * out_split_stride + ((token * H + head) * E)[:, None] + e[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=q_inside)
        lse_value = tl.where(total > 0, top / LOG2_E + tl.log(tl.where(total > 0, total, 1.0)), -float("inf"))
        lse_offset = split * lse_split_stride + token * H + head
        tl.store(lse + lse_offset, lse_value, mask=row_inside)


@triton.jit
def _combine_kernel(
    parts, part_lse, out, lse, split_stride, lse_split_stride,
    E: tl.constexpr, E_BLOCK: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, E_BLOCK)
    split = tl.arange(0, NUM_SPLITS)
    lses = tl.load(part_lse + split * lse_split_stride + row)
    top = tl.max(lses, 0)
    anchor = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.exp(lses - anchor)
    total = tl.sum(weight, 0)
    inside = (split >= 0)[:, None] & (e < E)[None, :]
    part = tl.load(parts + split[:, None].to(tl.int64) * split_stride + row * E + e[None, :], mask=inside, other=0.0)
    value = tl.sum(part * (weight / tl.where(total > 0, total, 1.0))[:, None], 0)
    tl.store(out + row * E + e, value.to(out.dtype.element_ty), mask=e < E)
    tl.store(lse + row, anchor + tl.log(total))


def paged_attention(
    q_THE: torch.Tensor,
    caches: Caches,
    batch: PagedBatch,
    options: AttentionOptions,
    num_splits: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of packed queries over their pages; returns out_THE in q's dtype and lse_TH in float32.

    q_THE: heads dense, tokens at any stride. caches: in q's dtype, or in one that fits into it, such as
    float8_e4m3fn.
    num_splits: parts that each sequence's keys are cut into (a power of two); more than 1 pays for few queries on long
    contexts.
    """
    k_cache, v_cache = caches.k, caches.v
    num_tokens, num_heads, head_dim = q_THE.shape
    page_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    group_block = triton.next_power_of_2(group)
    e_block = triton.next_power_of_2(head_dim)
    block_kv = 64 if head_dim <= 128 else 32
    block_q = max(1, triton.next_power_of_2(min(batch.max_num_q, max(16, 64 // group_block))))
    while block_q * group_block < 16:  # the smallest dot
        block_q *= 2
    out_THE = q_THE.new_empty(num_tokens, num_heads, head_dim)
    lse_TH = q_THE.new_empty(num_tokens, num_heads, dtype=torch.float32)
    parts, part_lse = out_THE, lse_TH
    if num_splits > 1:
        parts = q_THE.new_empty(num_splits, num_tokens, num_heads, head_dim, dtype=torch.float32)
        part_lse = q_THE.new_empty(num_splits, num_tokens, num_heads, dtype=torch.float32)
    grid = (batch.cache_seqlens.shape[0], triton.cdiv(batch.max_num_q, block_q), num_kv_heads * num_splits)
    _paged_attention_kernel[grid](
        q_THE, k_cache, v_cache, parts, part_lse, batch.cu_seqlens_q, batch.cache_seqlens, batch.page_table,
        batch.page_table.stride(0), q_THE.stride(0), k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        num_tokens * num_heads * head_dim, num_tokens * num_heads,
        options.softmax_scale * caches.k_scale, caches.v_scale,
        WINDOW=options.window, SOFT_CAP=options.soft_cap, PAGE_SIZE=page_size, H=num_heads, G=group, E=head_dim,
        G_BLOCK=group_block, E_BLOCK=e_block, BLOCK_Q=block_q, BLOCK_KV=block_kv, NUM_SPLITS=num_splits,
        NUM_STAGES=3 if head_dim <= 128 else 2, ALIGNED=options.window == 0 and page_size % block_kv == 0, num_warps=4,
    )  # fmt: skip
    if num_splits > 1:
        _combine_kernel[(num_tokens * num_heads,)](
            parts, part_lse, out_THE, lse_TH, num_tokens * num_heads * head_dim, num_tokens * num_heads,
            E=head_dim, E_BLOCK=e_block, NUM_SPLITS=num_splits, num_warps=1,
        )  # fmt: skip
    return out_THE, lse_TH
