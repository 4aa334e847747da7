"""Random ragged batches over a shuffled pool, and attention written a second time, query by query, in float64.

Every slot that no row owns is NaN: a backend that lets stale memory leak into a result cannot pass.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape

LAYERS = 2


def shape_of(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 16, **options: object) -> AttentionShape:
    fields = {"softmax_scale": head_dim**-0.5, "windows": (None,) * LAYERS} | options
    return AttentionShape(num_heads, num_kv_heads, head_dim, **fields)  # type: ignore[arg-type]


@dataclass
class Paged:
    """Rows of (cached, new) tokens with their keys and values, laid into a pool."""

    pool_NL2SKE: Tensor
    batch: AttentionBatch
    q_THE: Tensor
    k_TKE: Tensor
    v_TKE: Tensor
    dense: list[tuple[Tensor, Tensor]]
    """k_CKE and v_CKE of each row, new tokens included."""
    layer: int = 1


def make_paged(
    rows: list[tuple[int, int]],
    shape: AttentionShape,
    page_size: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    kv_dtype: torch.dtype | None = None,
) -> Paged:
    """`kv_dtype`: of the pages, where it is not `dtype`; all keys and values are then such as those hold."""
    rng = torch.Generator().manual_seed(seed)
    width = max(math.ceil((start + new) / page_size) for start, new in rows) + 1
    num_pages = len(rows) * width
    kv_shape = (shape.num_kv_heads, shape.head_dim)
    pool = torch.full((num_pages, LAYERS, 2, page_size, *kv_shape), math.nan, dtype=torch.float64)
    table = torch.randperm(num_pages, generator=rng).view(len(rows), width)
    dense, slots, new_k, new_v = [], [], [], []
    for row, (start, new) in enumerate(rows):
        k, v = torch.randn(2, start + new, *kv_shape, generator=rng, dtype=torch.float64).to(dtype)
        k_scale, v_scale = shape.scales(1)
        stored_k, stored_v = (k / k_scale).to(kv_dtype or dtype), (v / v_scale).to(kv_dtype or dtype)
        k, v = stored_k.to(dtype) * k_scale, stored_v.to(dtype) * v_scale
        where = torch.arange(start + new)
        pages, positions = table[row][where // page_size], where % page_size
        pool[pages[:start], 1, 0, positions[:start]] = stored_k[:start].double()
        pool[pages[:start], 1, 1, positions[:start]] = stored_v[:start].double()
        slots.append((pages * page_size + positions)[start:])
        dense.append((k, v))
        new_k.append(k[start:])
        new_v.append(v[start:])
    num_new = [new for _, new in rows]
    q = torch.randn(sum(num_new), shape.num_heads, shape.head_dim, generator=rng, dtype=torch.float64).to(dtype)
    batch = AttentionBatch(
        starts=[start for start, _ in rows],
        num_new=num_new,
        cu_seqlens_q_B1=torch.tensor([0, *num_new]).cumsum(0).int(),
        cache_seqlens_B=torch.tensor([start + new for start, new in rows], dtype=torch.int32),
        page_table_BP=table.int(),
        slots_T=torch.cat(slots),
    )
    return Paged(pool.to(kv_dtype or dtype), batch, q, torch.cat(new_k), torch.cat(new_v), dense)


def by_definition(paged: Paged, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """out_THE and lse_TH in float64, one query and one head at a time."""
    window = shape.windows[paged.layer]
    group = shape.num_heads // shape.num_kv_heads
    outs, lses, token = [], [], 0
    for (start, new), (k, v) in zip(
        zip(paged.batch.starts, paged.batch.num_new, strict=True), paged.dense, strict=True
    ):
        for position in range(start, start + new):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(shape.num_heads):
                keys = k[first : position + 1, head // group].double()
                score = keys @ paged.q_THE[token, head].double() * shape.softmax_scale
                if shape.soft_cap is not None:
                    score = shape.soft_cap * torch.tanh(score / shape.soft_cap)
                weight = torch.exp(score - score.max())
                outs.append(weight / weight.sum() @ v[first : position + 1, head // group].double())
                lses.append(weight.sum().log() + score.max())
            token += 1
    out = torch.stack(outs).view(-1, shape.num_heads, shape.head_dim)
    return out, torch.stack(lses).view(-1, shape.num_heads)
