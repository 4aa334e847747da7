"""Attention of one new token a row over pages where they lie: K and V are read once, nothing is gathered.

A task is a row's tokens [begin, end) for all its heads, so that pages are read front to back. Softmax is online, page
by page (section 3.1 of FlashAttention, arXiv:2205.14135), in float32. The arithmetic of a task depends on nothing
but the task: neither on the batch nor on the number of threads.

Shape suffixes: see engine.attention.base; I tasks, R query rows.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np.numpy_support import carray
from torch import Tensor

from engine.kernels.cpu.jit import (
    call_int,
    exp32,
    float32_at,
    inlined,
    int32_at,
    int64_at,
    team_entry,
    uint16_at,
    widen,
)
from engine.kernels.cpu.team import ENTRY_WORDS, torch_team

BYTES_A_THREAD = 1 << 17
"""Of keys and values: for fewer another thread is not worth calling."""
NUM_WORDS = 20


@inlined
def _scores(q_HE, pool, layer, page, seen, scale, score_HS):
    num_kv_heads, head_dim = pool.shape[4], pool.shape[5]
    group = q_HE.shape[0] // num_kv_heads
    for s in range(seen[0], seen[1]):
        for k in range(num_kv_heads):
            for h in range(k * group, (k + 1) * group):
                dot = np.float32(0)
                for e in range(head_dim):
                    dot += q_HE[h, e] * widen(pool[page, layer, 0, s, k, e])
                score_HS[h, s] = dot * scale


@inlined
def _weights(first, last, score_HS, top_H, sum_H, acc_HE):
    """From scores to their exponentials; what was summed before shrinks to the new maximum."""
    for h in range(score_HS.shape[0]):
        top = top_H[h]
        for s in range(first, last):
            top = max(top, score_HS[h, s])
        shrink = exp32(top_H[h] - top)
        total = np.float32(0)
        for s in range(first, last):
            weight = exp32(score_HS[h, s] - top)
            score_HS[h, s] = weight
            total += weight
        top_H[h] = top
        sum_H[h] = sum_H[h] * shrink + total
        for e in range(acc_HE.shape[1]):
            acc_HE[h, e] *= shrink


@inlined
def _add_values(pool, layer, page, seen, weight_HS, acc_HE):
    num_kv_heads, head_dim = pool.shape[4], pool.shape[5]
    group = acc_HE.shape[0] // num_kv_heads
    first, last = seen
    s = first
    while s + 4 <= last:  # four tokens at a time: the sum is loaded and stored once for them
        for k in range(num_kv_heads):
            for h in range(k * group, (k + 1) * group):
                w0, w1, w2, w3 = weight_HS[h, s], weight_HS[h, s + 1], weight_HS[h, s + 2], weight_HS[h, s + 3]
                for e in range(head_dim):
                    acc_HE[h, e] += (
                        w0 * widen(pool[page, layer, 1, s, k, e])
                        + w1 * widen(pool[page, layer, 1, s + 1, k, e])
                        + w2 * widen(pool[page, layer, 1, s + 2, k, e])
                        + w3 * widen(pool[page, layer, 1, s + 3, k, e])
                    )
        s += 4
    while s < last:
        for k in range(num_kv_heads):
            for h in range(k * group, (k + 1) * group):
                weight = weight_HS[h, s]
                for e in range(head_dim):
                    acc_HE[h, e] += weight * widen(pool[page, layer, 1, s, k, e])
        s += 1


@inlined
def _attend(q_RHE, pool_and_layer, page_table_BP, task_I4, scale, results, share):
    """The tasks of thread `part` of `num_parts`: those whose first token falls into its share of all tokens."""
    pool, layer = pool_and_layer
    out_IHE, lse_IH = results
    part, num_parts = share
    num_heads, head_dim, page_size = q_RHE.shape[1], q_RHE.shape[2], pool.shape[3]
    score_HS = np.empty((num_heads, page_size), np.float32)
    acc_HE = np.empty((num_heads, head_dim), np.float32)
    top_H, sum_H = np.empty(num_heads, np.float32), np.empty(num_heads, np.float32)
    total = 0
    for task in range(len(task_I4)):
        total += task_I4[task, 3] - task_I4[task, 2]
    before = 0
    for task in range(len(task_I4)):
        row, table_row, begin, end = task_I4[task, 0], task_I4[task, 1], task_I4[task, 2], task_I4[task, 3]
        owner = before * num_parts // total
        before += end - begin
        if owner != part:
            continue
        acc_HE[:] = 0
        sum_H[:] = 0
        top_H[:] = -np.inf
        for column in range(begin // page_size, (end + page_size - 1) // page_size):
            page = np.int64(page_table_BP[table_row, column])
            first, last = max(0, begin - column * page_size), min(page_size, end - column * page_size)
            _scores(q_RHE[row], pool, layer, page, (first, last), scale, score_HS)
            _weights(first, last, score_HS, top_H, sum_H, acc_HE)
            _add_values(pool, layer, page, (first, last), score_HS, acc_HE)
        for h in range(num_heads):
            for e in range(head_dim):
                out_IHE[task, h, e] = acc_HE[h, e] / sum_H[h]
            lse_IH[task, h] = top_H[h] + np.log(sum_H[h])


@inlined
def _run(words, pool_at):
    """Arrays from their addresses, as `paged_decode` lays them out."""
    part, num_parts = np.int64(0), np.int64(1)
    if words[0] != 0:
        part, num_parts = np.int64(call_int(words[0])), np.int64(call_int(words[1]))
    q, pool, pages, tasks, out, lse = words[2], words[3], words[4], words[5], words[6], words[7]
    layer, scale = words[8], np.int32(words[9]).view(np.float32)
    num_rows, num_heads, num_pages, num_layers, page_size = words[10], words[11], words[12], words[13], words[14]
    num_kv_heads, head_dim, table_rows, table_columns, num_tasks = words[15], words[16], words[17], words[18], words[19]
    _attend(
        carray(float32_at(q), (num_rows, num_heads, head_dim)),
        (carray(pool_at(pool), (num_pages, num_layers, 2, page_size, num_kv_heads, head_dim)), layer),
        carray(int32_at(pages), (table_rows, table_columns)),
        carray(int64_at(tasks), (num_tasks, 4)),
        scale,
        (carray(float32_at(out), (num_tasks, num_heads, head_dim)), carray(float32_at(lse), (num_tasks, num_heads))),
        (part, num_parts),
    )


def _float32(address):
    _run(carray(address, NUM_WORDS), float32_at)


def _bfloat16(address):
    _run(carray(address, NUM_WORDS), uint16_at)


@cache
def _entry(dtype: torch.dtype) -> Any:
    return team_entry({torch.float32: _float32, torch.bfloat16: _bfloat16}[dtype])


class PagedDecode:
    """The kernel over one pool, compiled when this is made."""

    def __init__(self, pool_NL2SKE: Tensor, softmax_scale: float) -> None:
        """The pool must be contiguous, in float32 or bfloat16."""
        assert pool_NL2SKE.is_contiguous()
        self._pool_NL2SKE = pool_NL2SKE
        self._entry, self._team = _entry(pool_NL2SKE.dtype), torch_team()
        self._scale = int(np.float32(softmax_scale).view(np.int32))
        num_pages, num_layers, _, page_size, num_kv_heads, head_dim = pool_NL2SKE.shape
        self._sizes = [num_pages, num_layers, page_size, num_kv_heads, head_dim]
        self._token_bytes = 2 * num_kv_heads * head_dim * pool_NL2SKE.element_size()

    def __call__(
        self, layer: int, q_RHE: Tensor, task_I4: Tensor, page_table_BP: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """out_IHE and lse_IH of every task.

        Args:
            layer: of the pool.
            q_RHE: float32, contiguous.
            task_I4: int64: query row, row of the page table, begin, end of the tokens that are read; begin < end.
            page_table_BP: int32, contiguous.
            num_tokens: of all tasks.
        """
        assert q_RHE.dtype == torch.float32 and q_RHE.is_contiguous() and page_table_BP.is_contiguous()
        num_tasks, num_rows, num_heads = len(task_I4), *q_RHE.shape[:2]
        out_IHE = q_RHE.new_empty(num_tasks, *q_RHE.shape[1:])
        lse_IH = q_RHE.new_empty(num_tasks, num_heads)
        arrays = (q_RHE, self._pool_NL2SKE, page_table_BP, task_I4, out_IHE, lse_IH)
        addresses = [array.data_ptr() for array in arrays]
        team_words = [0] * ENTRY_WORDS
        facts = [layer, self._scale, num_rows, num_heads, *self._sizes, *page_table_BP.shape, num_tasks]
        words = np.array([*team_words, *addresses, *facts], np.int64)
        enough = 1 + num_tokens * self._token_bytes // BYTES_A_THREAD
        self._team.run(self._entry, words, min(self._team.num_threads, num_tasks, enough))
        return out_IHE, lse_IH
