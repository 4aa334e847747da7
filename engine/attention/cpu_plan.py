"""The host-side plan of a step on CPU: which tokens go where, and what decode rows read.

A decode row is cut into tasks at fixed tokens, so that threads can share a long row and the arithmetic of a row does
not depend on its neighbours.

Shape suffixes: see engine.attention.base; I tasks, R decode rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch

TASK_TOKENS = 512
"""A row is cut into tasks at multiples of this."""

Index = slice | Tensor
"""Selects rows: neighbours as a slice, which copies nothing, others as int64."""


def index_of(rows: list[int]) -> Index:
    """The cheapest index that selects `rows`."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)


@dataclass(slots=True)
class ExtendRun:
    """Neighbouring rows with equally many new tokens: T in [first, first + num_rows * num_new).

    Only rows without cached tokens share a run: one kernel call, and one meeting of the threads, for all of them.
    """

    first: int
    start: int
    num_new: int
    pages_P: Tensor
    """int64, the first row's pages in order."""
    num_rows: int = 1

    @property
    def tokens(self) -> slice:
        """Where in T the run's new tokens are."""
        return slice(self.first, self.first + self.num_rows * self.num_new)


@dataclass(frozen=True, slots=True)
class Tasks:
    """What the decode rows of a step read, the same for all layers with one sliding window."""

    task_I4: Tensor
    """int64: decode row, row of the page table, begin and end of the tokens; in the order of the decode rows."""
    page_table_BP: Tensor
    """int32, contiguous."""
    num_tokens: int
    """Of all tasks."""
    num_rows: int

    def merge(self, out_IHE: Tensor, lse_IH: Tensor) -> tuple[Tensor, Tensor]:
        """out_RHE and lse_RH over all tasks of each row, by their log-sum-exp."""
        if len(self.task_I4) == self.num_rows:
            return out_IHE, lse_IH
        row_I = self.task_I4[:, 0]
        top_RH = lse_IH.new_full((self.num_rows, lse_IH.shape[1]), -math.inf)
        top_RH.scatter_reduce_(0, row_I[:, None].expand_as(lse_IH), lse_IH, "amax")
        weight_IH = torch.exp(lse_IH - top_RH[row_I])
        sum_RH = torch.zeros_like(top_RH).index_add_(0, row_I, weight_IH)
        out_RHE = out_IHE.new_zeros(self.num_rows, *out_IHE.shape[1:])
        out_RHE.index_add_(0, row_I, out_IHE * weight_IH[..., None])
        return out_RHE / sum_RH[..., None], top_RH + sum_RH.log()


def plan_tasks(rows: Sequence[int], ranges: Sequence[tuple[int, int]], page_table_BP: Tensor) -> Tasks:
    """Cut what each decode row reads, tokens [begin, end) of a row of the page table, into tasks. No range is empty."""
    tasks = [
        (decode_row, row, max(begin, cut), min(end, cut + TASK_TOKENS))
        for decode_row, (row, (begin, end)) in enumerate(zip(rows, ranges, strict=True))
        for cut in range(begin // TASK_TOKENS * TASK_TOKENS, end, TASK_TOKENS)
    ]
    num_tokens = sum(end - begin for begin, end in ranges)
    return Tasks(torch.tensor(tasks), page_table_BP.int().contiguous(), num_tokens, len(rows))


class CPUStep:
    """One planned step. What depends on a sliding window is planned at the first layer that has that window."""

    def __init__(self, batch: AttentionBatch, page_size: int, narrowest_window: int) -> None:
        assert int(batch.slots_T.min()) >= 0, "padding rows belong to graphs, which the CPU path has not"
        self.slots_T = batch.slots_T
        self.page_T, self.position_T = batch.slots_T // page_size, batch.slots_T % page_size
        firsts = [0, *accumulate(batch.num_new)]
        self._decode = [row for row, num_new in enumerate(batch.num_new) if num_new == 1]
        self.decode_T = index_of([firsts[row] for row in self._decode]) if self._decode else None
        """Where in T the decode rows are."""
        self.extends = _runs(batch, firsts, narrowest_window)
        self._decode_lens = [batch.starts[row] + 1 for row in self._decode]
        self._page_table_BP = batch.page_table_BP
        self._tasks: dict[int | None, Tasks] = {}

    def tasks(self, window: int | None) -> Tasks:
        """What each decode row sees through `window`."""
        if window not in self._tasks:
            ranges = [(max(0, length - window) if window else 0, length) for length in self._decode_lens]
            self._tasks[window] = plan_tasks(self._decode, ranges, self._page_table_BP)
        return self._tasks[window]


def _runs(batch: AttentionBatch, firsts: list[int], narrowest_window: int) -> list[ExtendRun]:
    """The rows with several new tokens. Rows that a sliding window cuts into stay alone."""
    runs: list[ExtendRun] = []
    for row, (start, num_new) in enumerate(zip(batch.starts, batch.num_new, strict=True)):
        if num_new == 1:
            continue
        last = runs[-1] if runs else None
        alike = last is not None and start == last.start == 0 and num_new == last.num_new <= narrowest_window
        if last is not None and alike and last.tokens.stop == firsts[row]:
            last.num_rows += 1
        else:
            runs.append(ExtendRun(firsts[row], start, num_new, batch.page_table_BP[row].long()))
    return runs
