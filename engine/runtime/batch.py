"""From a step plan to the tensors that one forward pass reads.

Shape suffixes: T tokens of the step, B rows of the step; see engine.runtime.rows and engine.attention.base.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch
from engine.core.types import StepPlan
from engine.runtime.device import to_device
from engine.runtime.rows import RowTable


@dataclass(slots=True)
class StepBatch:
    """The rows of one step, in the plan's order, packed along T."""

    slots: list[int]
    """Of each row in the RowTable."""
    ends: list[int]
    """Tokens of each row after the step: where the token that it draws will stand."""
    tokens_T: Tensor
    positions_T: Tensor
    """int64"""
    attention: AttentionBatch


def build_batch(plan: StepPlan, table: RowTable) -> StepBatch:
    """Lay out a plan whose bookkeeping `table` has applied. Only three numbers a row go to the device."""
    slots = table.slots(plan.ids)
    ends = [start + num_new for start, num_new in zip(plan.starts, plan.num_new, strict=True)]
    slots_B, starts_B, num_new_B = to_device([slots, plan.starts, plan.num_new], table.device)
    cu_seqlens_B1 = torch.nn.functional.pad(num_new_B.cumsum(0), (1, 0))
    if plan.num_tokens == len(slots):  # one token a row
        slots_T, positions_T = slots_B, starts_B
    else:
        row_T = torch.repeat_interleave(num_new_B, output_size=plan.num_tokens)
        within_T = torch.arange(plan.num_tokens, device=table.device) - cu_seqlens_B1[row_T]
        slots_T, positions_T = slots_B[row_T], starts_B[row_T] + within_T
    page_size = table.page_size
    pages_T = table.pages_RP[slots_T, positions_T // page_size].long()
    width = -(-max(ends) // page_size)
    attention = AttentionBatch(
        starts=plan.starts,
        num_new=plan.num_new,
        cu_seqlens_q_B1=cu_seqlens_B1.int(),
        cache_seqlens_B=(starts_B + num_new_B).int(),
        page_table_BP=table.pages_RP[slots_B, :width],
        slots_T=pages_T * page_size + positions_T % page_size,
    )
    return StepBatch(slots, ends, table.tokens_RC[slots_T, positions_T], positions_T, attention)
