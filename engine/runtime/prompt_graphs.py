"""Steps of one prompt as CUDA graphs: without them a short prompt takes as long as the host needs for its launches.

As engine.runtime.graphs, for one row that extends by several tokens: a graph for each count of tokens and for each way
through attention (all new, or over a cached prefix). A step runs in the next larger graph where that computes at most
MAX_WASTE tokens too many: padding tokens write no KV, and nobody reads what becomes of them. Longer steps than the
largest graph keep the device busy while the host launches, and run launch by launch, as do steps of several rows.

Shape suffixes: T tokens of the graph, padding included; V vocabulary; see engine.runtime.rows.
"""

from bisect import bisect_left

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionBatch
from engine.core.types import StepPlan
from engine.kernels.argmax import argmax
from engine.models.base import CausalLM
from engine.runtime.device import Stopwatch, to_device
from engine.runtime.graphs import CapturedStep, GraphMemory
from engine.runtime.rows import RowTable

MAX_WASTE = 31
SIZES = (*range(32, 769, 32), *range(1024, 2049, 256))
"""Up to 768 tokens every step has a graph; beyond, where launches cost a small part of it, only round lengths have."""


class PromptGraphs:
    """Implements engine.runtime.graphs.StepGraphs for steps of one row with more than one new token."""

    WARMUPS = 1

    def __init__(
        self, model: CausalLM, attention: AttentionBackend, table: RowTable, memory: GraphMemory, max_tokens: int
    ) -> None:
        """`max_tokens` of a step."""
        self._model = model
        self._attention = attention
        self._table = table
        self._memory = memory
        longest = min(max_tokens, table.tokens_RC.shape[1] - 2)
        self.sizes: list[int] = [size for size in SIZES if size <= longest]
        self._row_4 = torch.zeros(4, dtype=torch.int64, device=table.device)
        """The only input of every graph: the row's slot, its tokens before the step, its new tokens, and the slot that
        gets the drawn token: the same, or the spare one where the step draws none."""
        self._graphs: dict[tuple[int, bool], CapturedStep] = {}

    def takes(self, plan: StepPlan) -> bool:
        """See StepGraphs. Prompts that report log probabilities need the hidden states of all their tokens."""
        if len(plan.ids) != 1 or plan.num_tokens < 2 or not self.sizes or plan.num_tokens > self.sizes[-1]:
            return False
        reports = self._table.sampling[self._table.slots(plan.ids)[0]].num_prompt_logprobs is not None
        return not reports and self._size(plan.num_tokens) - plan.num_tokens <= MAX_WASTE

    def replay(self, plan: StepPlan, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """See StepGraphs."""
        [slot], [start], [num_new] = self._table.slots(plan.ids), plan.starts, plan.num_new
        drawn_to = slot if plan.samples[0] else self._table.spare_slot
        self._row_4.copy_(to_device([slot, start, num_new, drawn_to], self._table.device), non_blocking=True)
        size, is_new = self._size(num_new), start == 0
        captured = self._graphs.get((size, is_new))
        if captured is None:
            captured = self._memory.capture(lambda: self._step(size, is_new), self.WARMUPS)
            self._graphs[size, is_new] = captured
        stopwatch.begin()
        captured.graph.replay()
        return captured.logits_BV, captured.tokens_B

    def close(self) -> None:
        """See StepGraphs."""
        self._graphs.clear()

    def _size(self, num_new: int) -> int:
        return self.sizes[bisect_left(self.sizes, num_new)]

    def _step(self, size: int, is_new: bool) -> tuple[Tensor, Tensor]:
        table = self._table
        slot, start, num_new, drawn_to = self._row_4[:, None]
        within_T = torch.arange(size, device=table.device)
        inside_T = within_T < num_new
        positions_T = torch.where(inside_T, start + within_T, 0)
        slots_T = slot.expand(size)
        page_size = table.page_size
        pages_T = table.pages_RP[slots_T, positions_T // page_size].long()
        batch = AttentionBatch(
            # On the host: as many tokens as the graph holds, behind none or as many as the table allows.
            starts=[0 if is_new else table.tokens_RC.shape[1] - 1 - size],
            num_new=[size],
            cu_seqlens_q_B1=torch.nn.functional.pad(num_new, (1, 0)).int(),
            cache_seqlens_B=(start + num_new).int(),
            page_table_BP=table.pages_RP[slot],
            slots_T=torch.where(inside_T, pages_T * page_size + positions_T % page_size, -1),
        )
        self._attention.plan(batch)
        tokens_T = table.tokens_RC[slots_T, positions_T]
        hidden_1D = self._model.forward(tokens_T, positions_T, self._attention, num_new - 1)
        logits_1V = self._model.logits(hidden_1D)
        tokens_1 = argmax(logits_1V)
        table.tokens_RC[drawn_to, start + num_new] = tokens_1.int()
        return logits_1V, tokens_1
