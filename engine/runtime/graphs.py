"""Decode steps as CUDA graphs: one launch a step instead of some three hundred.

A graph is captured at the first step of its size. Everything between two numbers a row (its slot in the RowTable and
where it stands) and the drawn tokens is inside: page table, positions, attention's schedule, the model, the argmax, and
the write of the token to where the row's next step reads it. Steps of other sizes run in the next larger graph: padding
rows read the table's spare slot and write no KV.

Shape suffixes: B rows of the graph, padding included; V vocabulary; see engine.runtime.rows.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionBatch
from engine.core.types import StepPlan
from engine.kernels.argmax import argmax
from engine.models.base import CausalLM
from engine.runtime.device import Stopwatch
from engine.runtime.rows import RowTable

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)


def sizes(max_rows: int) -> list[int]:
    """Rows of the graphs that serve up to `max_rows`."""
    return [size for size in SIZES if size < max_rows] + [max_rows]


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A captured step and the tensors that it leaves its results in, until the next replay of any graph."""

    graph: torch.cuda.CUDAGraph
    logits_BV: Tensor
    tokens_B: Tensor
    """int64, the likeliest token of each row; written to the RowTable too."""


class GraphMemory:
    """Captures steps on one device; all their graphs share memory, since one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]], num_warmups: int) -> CapturedStep:
        """`step` launches everything and returns logits_BV and tokens_B. It is run `num_warmups` times before: kernels
        compile and libraries make their workspaces, which a capture must not see.
        """
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(num_warmups):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The stream is named, since torch's own is one for all devices; "thread_local" since other ranks' threads
        # capture at the same time, and transfers may copy meanwhile. Kernels of one rank wait for those of the others:
        # all launch the same ones, the warm-up included.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            logits_BV, tokens_B = step()
        self._pool = graph.pool()
        return CapturedStep(graph, logits_BV, tokens_B)


class StepGraphs(Protocol):
    """Steps of one kind as graphs; called by the executor's thread only."""

    @property
    def sizes(self) -> Sequence[int]:
        """Of the graphs, ascending: rows or tokens."""

    def takes(self, plan: StepPlan) -> bool:
        """Whether the step runs as a graph."""

    def replay(self, plan: StepPlan, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Run the step: logits_BV and tokens_B of its rows, valid until the next replay.

        `stopwatch` is begun right before the launch, so that no wait for the host counts as the device's work.
        """

    def close(self) -> None:
        """Destroy the graphs, when none runs."""


class DecodeGraphs:
    """Steps that extend every row by one token and draw one."""

    WARMUPS = 2

    def __init__(
        self, model: CausalLM, attention: AttentionBackend, table: RowTable, memory: GraphMemory, max_rows: int
    ) -> None:
        self._model = model
        self._attention = attention
        self._table = table
        self._memory = memory
        self.sizes = sizes(max_rows)
        self._rows_2B = torch.zeros(2, max_rows, dtype=torch.int64, device=table.device)
        """Slot and position of each row: the only input of every graph."""
        self._graphs: dict[int, CapturedStep] = {}

    def takes(self, plan: StepPlan) -> bool:
        """See StepGraphs."""
        return 0 < len(plan.ids) <= self.sizes[-1] and plan.num_tokens == len(plan.ids) and all(plan.samples)

    def replay(self, plan: StepPlan, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """See StepGraphs."""
        slots, num_rows = self._table.slots(plan.ids), len(plan.ids)
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        spare = [self._table.spare_slot] * (size - num_rows)
        rows_2B = torch.tensor([slots + spare, plan.starts + [0] * len(spare)]).pin_memory()
        self._rows_2B[:, :size].copy_(rows_2B, non_blocking=True)
        captured = self._graphs.get(size)
        if captured is None:
            captured = self._graphs[size] = self._memory.capture(lambda: self._step(size), self.WARMUPS)
        stopwatch.begin()
        captured.graph.replay()
        return captured.logits_BV[:num_rows], captured.tokens_B[:num_rows]

    def close(self) -> None:
        """See StepGraphs."""
        self._graphs.clear()

    def _step(self, size: int) -> tuple[Tensor, Tensor]:
        table = self._table
        slots_B, starts_B = self._rows_2B[:, :size]
        page_size = table.page_size
        pages_B = table.pages_RP[slots_B, starts_B // page_size].long()
        kv_slots_B = torch.where(slots_B == table.spare_slot, -1, pages_B * page_size + starts_B % page_size)
        batch = AttentionBatch(
            # On the host the lengths are those of no step, so every row may be as long as the table allows.
            starts=[table.tokens_RC.shape[1] - 2] * size,
            num_new=[1] * size,
            cu_seqlens_q_B1=torch.arange(size + 1, dtype=torch.int32, device=table.device),
            cache_seqlens_B=(starts_B + 1).int(),
            page_table_BP=table.pages_RP[slots_B],
            slots_T=kv_slots_B,
        )
        self._attention.plan(batch)
        hidden_BD = self._model.forward(table.tokens_RC[slots_B, starts_B], starts_B, self._attention)
        logits_BV = self._model.logits(hidden_BD)
        tokens_B = argmax(logits_BV)
        table.tokens_RC[slots_B, starts_B + 1] = tokens_B.int()
        return logits_BV, tokens_B
