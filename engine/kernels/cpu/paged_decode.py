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

from engine.kernels.cpu.blocks import dot_block, sum_block
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
from engine.kernels.cpu.vector import LANES

BYTES_A_THREAD = 1 << 17
"""Of keys and values: for fewer another thread is not worth calling."""
NUM_WORDS = 20

VECTORS = 4
"""Of a head's dimensions summed at a time."""


_dots_1, _dots_2, _dots_3, _dots_4 = (dot_block(4, heads, fetches=True) for heads in (1, 2, 3, 4))
_dot = dot_block(1, 1)
_sum_1, _sum_2, _sum_3, _sum_4 = (sum_block(heads, VECTORS) for heads in (1, 2, 3, 4))
_thin_sum = sum_block(1, 1)


@inlined
def _scores(stored, k_at, q_at, score_at, sizes, seen, ahead):
    """score[h, s] of the tokens seen[0] <= s < seen[1] of a page, not yet scaled, for all heads.

    Tokens go four at a time; of the last four some may be computed again, to the same bits.
    """
    item, page_size, num_kv_heads, head_dim, group = sizes
    stride, first, last = num_kv_heads * head_dim, seen[0], seen[1]
    for h in range(num_kv_heads * group):
        if last - first < 4:
            for s in range(first, last):
                k = k_at + item * (s * stride + h // group * head_dim)
                _dot(stored, k, 0, q_at + 4 * h * head_dim, 0, score_at + 4 * (h * page_size + s), 0, head_dim, 0)
    for four in range((last - first + 3) // 4 if last - first >= 4 else 0):
        s = min(first + 4 * four, last - 4)
        for kv_head in range(num_kv_heads):
            k, h = k_at + item * (s * stride + kv_head * head_dim), kv_head * group
            while h < (kv_head + 1) * group:
                q, score = q_at + 4 * h * head_dim, score_at + 4 * (h * page_size + s)
                left = (kv_head + 1) * group - h
                if left >= 4:
                    _dots_4(stored, k, stride, q, head_dim, score, page_size, head_dim, ahead)
                elif left == 3:
                    _dots_3(stored, k, stride, q, head_dim, score, page_size, head_dim, ahead)
                elif left == 2:
                    _dots_2(stored, k, stride, q, head_dim, score, page_size, head_dim, ahead)
                else:
                    _dots_1(stored, k, stride, q, head_dim, score, page_size, head_dim, ahead)
                h += 4


@inlined
def _weights(seen, scale, score_HS, top_H, sum_H, acc_HE):
    """From scores to their exponentials; what was summed before shrinks to the new maximum."""
    first, last = seen
    for h in range(score_HS.shape[0]):
        top = top_H[h]
        for s in range(first, last):
            score_HS[h, s] *= scale
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
def _add_values(stored, v_at, weight_at, acc_at, sizes, seen, ahead):
    """acc[h, e] += the weighted values of the tokens seen[0] <= s < seen[1] of a page, for e below E // 16 * 16."""
    item, page_size, num_kv_heads, head_dim, group = sizes
    stride, first, number = num_kv_heads * head_dim, seen[0], seen[1] - seen[0]
    for kv_head in range(num_kv_heads):
        e = 0
        while e + LANES <= head_dim:
            v, h = v_at + item * (first * stride + kv_head * head_dim + e), kv_head * group
            wide = e + VECTORS * LANES <= head_dim
            while h < (kv_head + 1) * group:
                weight, acc = weight_at + 4 * (h * page_size + first), acc_at + 4 * (h * head_dim + e)
                left = (kv_head + 1) * group - h
                if not wide:
                    _thin_sum(stored, v, stride, weight, page_size, acc, head_dim, number, ahead)
                    h += 1
                elif left >= 4:
                    _sum_4(stored, v, stride, weight, page_size, acc, head_dim, number, ahead)
                    h += 4
                elif left == 3:
                    _sum_3(stored, v, stride, weight, page_size, acc, head_dim, number, ahead)
                    h += 3
                elif left == 2:
                    _sum_2(stored, v, stride, weight, page_size, acc, head_dim, number, ahead)
                    h += 2
                else:
                    _sum_1(stored, v, stride, weight, page_size, acc, head_dim, number, ahead)
                    h += 1
            e += VECTORS * LANES if wide else LANES


@inlined
def _add_last_values(pool, place, weight_HS, acc_HE, seen):
    """The same for the dimensions from E // 16 * 16 on."""
    page, layer = place
    group = acc_HE.shape[0] // pool.shape[4]
    for e in range(acc_HE.shape[1] // LANES * LANES, acc_HE.shape[1]):
        for h in range(acc_HE.shape[0]):
            total = acc_HE[h, e]
            for s in range(seen[0], seen[1]):
                total += weight_HS[h, s] * widen(pool[page, layer, 1, s, h // group, e])
            acc_HE[h, e] = total


@inlined
def _attend(q_RHE, paged, page_table_BP, task_I4, scale, results, share):
    """The tasks of thread `part` of `num_parts`: those whose first token falls into its share of all tokens."""
    stored, pool, layer = paged
    out_IHE, lse_IH = results
    part, num_parts = share
    num_heads, head_dim, page_size, num_kv_heads = q_RHE.shape[1], q_RHE.shape[2], pool.shape[3], pool.shape[4]
    sizes = (pool.itemsize, page_size, num_kv_heads, head_dim, num_heads // num_kv_heads)
    half = page_size * num_kv_heads * head_dim
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
        last_column = (end + page_size - 1) // page_size - 1
        for column in range(begin // page_size, last_column + 1):
            page = np.int64(page_table_BP[table_row, column])
            next_page = np.int64(page_table_BP[table_row, min(column + 1, last_column)])
            seen = max(0, begin - column * page_size), min(page_size, end - column * page_size)
            k_at = pool[page, layer].ctypes.data
            ahead = (next_page - page) * pool.shape[1] * 2 * half - half
            _scores(stored, k_at, q_RHE[row].ctypes.data, score_HS.ctypes.data, sizes, seen, half)
            _weights(seen, scale, score_HS, top_H, sum_H, acc_HE)
            v_at = k_at + pool.itemsize * half
            _add_values(stored, v_at, score_HS.ctypes.data, acc_HE.ctypes.data, sizes, seen, ahead)
            _add_last_values(pool, (page, layer), score_HS, acc_HE, seen)
        for h in range(num_heads):
            for e in range(head_dim):
                out_IHE[task, h, e] = acc_HE[h, e] / sum_H[h]
            lse_IH[task, h] = top_H[h] + np.log(sum_H[h])


@inlined
def _run(words, stored, pool_at):
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
        (stored, carray(pool_at(pool), (num_pages, num_layers, 2, page_size, num_kv_heads, head_dim)), layer),
        carray(int32_at(pages), (table_rows, table_columns)),
        carray(int64_at(tasks), (num_tasks, 4)),
        scale,
        (carray(float32_at(out), (num_tasks, num_heads, head_dim)), carray(float32_at(lse), (num_tasks, num_heads))),
        (part, num_parts),
    )


def _float32(address):
    _run(carray(address, NUM_WORDS), np.float32(0), float32_at)


def _bfloat16(address):
    _run(carray(address, NUM_WORDS), np.uint16(0), uint16_at)


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
