"""The Triton attention kernel against a dense float64 softmax, under Triton's interpreter."""

import pytest
import torch

from engine.kernels.caches import Caches
from engine.kernels.paged_attention import AttentionOptions, PagedBatch, paged_attention


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [n, H, E] at the end of k, v [m, K, E]; float64 throughout."""
    n, m, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    score = torch.einsum("qhe,khe->hqk", q.double(), k) * options.softmax_scale
    if options.soft_cap:
        score = options.soft_cap * torch.tanh(score / options.soft_cap)
    position, key = torch.arange(m - n, m)[:, None], torch.arange(m)[None, :]
    hidden = key > position
    if options.window:
        hidden |= key <= position - options.window
    score = score.masked_fill(hidden, -torch.inf)
    return torch.einsum("hqk,khe->qhe", score.softmax(-1), v), score.logsumexp(-1).T


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(4, 4, 64), (6, 2, 64), (8, 1, 64), (6, 2, 96), (8, 1, 128), (4, 4, 256), (6, 2, 256)],
)
def test_ragged_extend(heads: int, kv_heads: int, head_dim: int) -> None:
    check([(5, 5), (3, 40), (1, 17), (20, 70)], heads, kv_heads, head_dim, 16, AttentionOptions(head_dim**-0.5))


@pytest.mark.parametrize("num_splits", [1, 2, 4])
@pytest.mark.parametrize("page_size", [1, 16, 128])
def test_decode_in_splits(num_splits: int, page_size: int) -> None:
    check([(1, 1), (1, 33), (1, 200)], 8, 2, 64, page_size, AttentionOptions(0.125), num_splits)


@pytest.mark.parametrize(
    "options", [AttentionOptions(0.1, window=9), AttentionOptions(0.3, soft_cap=5.0), AttentionOptions(0.3, 30, 2.0)]
)
@pytest.mark.parametrize("num_splits", [1, 4])
def test_window_and_soft_cap(options: AttentionOptions, num_splits: int) -> None:
    check([(7, 50), (1, 90), (12, 12)], 4, 2, 64, 8, options, num_splits)


def check(
    rows: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    options: AttentionOptions,
    num_splits: int = 1,
) -> None:
    """rows: (new tokens, all tokens) of each sequence. Pages are shuffled; slots outside of a sequence hold NaN."""
    pages_of = [-(-total // page_size) for _, total in rows]
    num_pages = sum(pages_of) + 2
    slab = torch.full((num_pages, 3, 2, page_size, kv_heads, head_dim), torch.nan)
    order = torch.randperm(num_pages).tolist()
    page_table = torch.zeros(len(rows), max(pages_of), dtype=torch.int32)
    queries, outs, lses = [], [], []
    for i, (new, total) in enumerate(rows):
        q, k, v = (
            torch.randn(new, heads, head_dim),
            torch.randn(total, kv_heads, head_dim),
            torch.randn(total, kv_heads, head_dim),
        )
        for j in range(pages_of[i]):
            page_table[i, j] = page = order.pop()
            part = slice(j * page_size, min(total, (j + 1) * page_size))
            slab[page, 1, 0, : part.stop - part.start] = k[part]
            slab[page, 1, 1, : part.stop - part.start] = v[part]
        out, lse = reference(q, k, v, options)
        queries.append(q), outs.append(out), lses.append(lse)
    starts = torch.tensor([0, *(new for new, _ in rows)]).cumsum(0).int()
    lengths = torch.tensor([total for _, total in rows]).int()
    batch = PagedBatch(starts, lengths, page_table, max(new for new, _ in rows))
    out, lse = paged_attention(torch.cat(queries), Caches(slab[:, 1, 0], slab[:, 1, 1]), batch, options, num_splits)
    torch.testing.assert_close(out.double(), torch.cat(outs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), torch.cat(lses), rtol=1e-4, atol=1e-4)
