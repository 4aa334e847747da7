"""One step on the device: apply the plan's bookkeeping, run the model, draw, and leave the tokens where they are next.

Nothing here waits for the device, save sampling settings that need its answer on the host (see sampler, constrain).
Shape suffixes: T tokens of the step, D hidden, B rows, S rows that draw a token, L positions that want log
probabilities, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend
from engine.core.types import StepOutput, StepPlan, TokenLogprob
from engine.models.base import CausalLM, Collective
from engine.runtime.batch import StepBatch, build_batch
from engine.runtime.constrain import HostTokens
from engine.runtime.device import Stopwatch, to_device, to_host
from engine.runtime.logprobs import Logprobs, chunks, logprobs_of
from engine.runtime.rows import RowTable
from engine.runtime.sampler import draw

if TYPE_CHECKING:  # its kernels are imported only where there is a CUDA device
    from engine.runtime.graphs import StepGraphs


@dataclass(slots=True)
class PendingStep:
    """A step that was enqueued. The device may still be at it."""

    step_id: int
    num_rows: int
    stopwatch: Stopwatch
    drawing: list[int]
    """Rows that draw a token."""
    tokens_S: Tensor | None = None
    logprob_rows: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None
    prompt_logprobs: list[tuple[int, Logprobs]] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    """By id: rows whose grammar cannot be followed; their tokens mean nothing."""

    def wait(self) -> StepOutput:
        """Block until the step is done."""
        output = StepOutput(self.step_id, [-1] * self.num_rows, step_s=self.stopwatch.wait())
        output.refused = self.refused or None
        if self.tokens_S is not None:
            for row, token in zip(self.drawing, self.tokens_S.tolist(), strict=True):
                output.tokens[row] = token
        if self.logprobs is not None:
            output.logprobs = [None] * self.num_rows
            for row, value in zip(self.logprob_rows, self.logprobs.values(), strict=True):
                output.logprobs[row] = value
        if self.prompt_logprobs:
            by_id: dict[int, list[TokenLogprob]] = {}
            for id, part in self.prompt_logprobs:
                by_id.setdefault(id, []).extend(part.values())
            output.prompt_logprobs = by_id
        return output


class StepRunner:
    """Owns the row table and the planned state of attention. Called by one thread, in the order of the plans.

    Steps that its graphs take are replayed instead of launched kernel by kernel.
    """

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        table: RowTable,
        graphs: Sequence["StepGraphs"] = (),
        ranks: Collective | None = None,
    ) -> None:
        """`graphs`: the first that takes a step runs it. `ranks`: with several of them, each has a runner, and all are
        given the same plans."""
        self._model = model
        self._ranks = ranks
        self._attention = attention
        self._table = table
        self._graphs = graphs

    def use_device(self) -> None:
        """Make the runner's device the calling thread's own: kernels and graphs go to the thread's current one."""
        if self._table.device.type == "cuda":
            torch.cuda.set_device(self._table.device)

    def close(self) -> None:
        """Give the graphs back, when no step is in flight. No step can be started afterwards."""
        for each in self._graphs:
            each.close()

    def when_compiled(self, call: Callable[[], None]) -> None:
        """See FollowedRows."""
        self._table.grammars.when_compiled(call)

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> PendingStep:
        """Enqueue one step; a plan without rows is its bookkeeping only. Plans must come in order, each once."""
        self._table.apply(plan)
        stopwatch = Stopwatch(self._table.device)
        drawing = [row for row, samples in enumerate(plan.samples) if samples]
        pending = PendingStep(plan.step_id, len(plan.ids), stopwatch, drawing)
        graphs = next((each for each in self._graphs if each.takes(plan)), None)
        if graphs is not None:
            self._replay(graphs, plan, pending)
        else:
            stopwatch.begin()
            if plan.ids:
                self._run(plan, pending)
        stopwatch.end()
        return pending

    def _replay(self, graphs: "StepGraphs", plan: StepPlan, pending: PendingStep) -> None:
        logits_BV, tokens_B = graphs.replay(plan, pending.stopwatch)
        slots = self._table.slots(plan.ids)
        if not pending.drawing:
            return
        if self._table.special.isdisjoint(slots):
            pending.tokens_S = to_host(tokens_B)
            return
        ends = [start + num_new for start, num_new in zip(plan.starts, plan.num_new, strict=True)]
        self._draw(logits_BV, slots, ends, pending)

    def _run(self, plan: StepPlan, pending: PendingStep) -> None:
        batch, drawing = build_batch(plan, self._table), pending.drawing
        self._attention.plan(batch.attention)
        rows_S = to_device(drawing, self._table.device, torch.int64)
        last_S = batch.attention.cu_seqlens_q_B1[rows_S + 1].long() - 1
        reports = any(self._table.sampling[slot].num_prompt_logprobs is not None for slot in batch.slots)
        wants_all = reports or len(drawing) == plan.num_tokens
        hidden = self._model.forward(batch.tokens_T, batch.positions_T, self._attention, None if wants_all else last_S)
        if drawing:
            slots, ends = ([values[row] for row in drawing] for values in (batch.slots, batch.ends))
            hidden_SD = hidden[last_S] if reports else hidden
            self._draw(self._model.logits(hidden_SD), slots, ends, pending)
        if reports:
            self._report_prompts(plan, batch, hidden, pending)

    def _draw(self, logits_SV: Tensor, slots: list[int], positions: list[int], pending: PendingStep) -> None:
        """Draw, keep the tokens where the next steps read them, and send home what was asked for."""
        table, drawing = self._table, pending.drawing
        logits_SV = logits_SV.float()
        slots_S, positions_S = to_device([slots, positions], table.device)
        tokens_S = draw(logits_SV, table, slots, positions)
        if self._ranks is not None and not table.special.isdisjoint(slots):
            # Equal logits, but sums over a vocabulary may round otherwise each time: the first rank's draw counts.
            tokens_S = self._ranks.all_gather(tokens_S[:, None].contiguous())[:, 0]
        table.tokens_RC[slots_S, positions_S] = tokens_S.int()
        pending.tokens_S = to_host(tokens_S)
        if table.grammars.by_slot:
            pending.refused = table.grammars.drew(slots, HostTokens(pending.tokens_S, table.device))
        num_top = [table.sampling[slot].num_logprobs for slot in slots]
        wanted = [index for index, num in enumerate(num_top) if num is not None]
        if wanted:
            wanted_L = to_device(wanted, table.device)
            asked = [num for num in num_top if num is not None]
            pending.logprobs = logprobs_of(logits_SV[wanted_L], tokens_S[wanted_L], asked)
            pending.logprob_rows = [drawing[index] for index in wanted]

    def _report_prompts(self, plan: StepPlan, batch: StepBatch, hidden_TD: Tensor, pending: PendingStep) -> None:
        """Log probabilities of the prompt tokens that this step's prompt tokens predict."""
        table, first = self._table, 0
        for id, slot, start, num_new in zip(plan.ids, batch.slots, plan.starts, plan.num_new, strict=True):
            num_top = table.sampling[slot].num_prompt_logprobs
            end = min(start + num_new, table.num_prompt[slot] - 1)
            if num_top is not None:
                for positions in chunks(start, end):
                    hidden_LD = hidden_TD[first + positions.start - start : first + positions.stop - start]
                    targets_L = table.tokens_RC[slot, positions.start + 1 : positions.stop + 1].long()
                    logits_LV = self._model.logits(hidden_LD).float()
                    part = logprobs_of(logits_LV, targets_L, [num_top] * len(positions))
                    pending.prompt_logprobs.append((id, part))
            first += num_new
