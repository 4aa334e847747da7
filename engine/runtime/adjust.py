"""Logits as the request wants them before temperature: bias, penalties, and no early stop.

Applied in this order, as vLLM does; transformers differs only in where equal results allow it:
    1. logit_bias is added;
    2. repetition penalty (Keskar et al. 2019, arXiv:1909.05858) over prompt and output: positive logits are divided,
       negative ones multiplied;
    3. frequency penalty times the count in the output, and presence penalty once, are subtracted (OpenAI's formula);
    4. before min_tokens new tokens, the stop tokens are impossible;
    5. what the row's grammar does not allow is impossible (see engine.runtime.constrain).
"Output" is what follows num_prompt, whichever attempt drew it.

Shape suffixes: S rows that draw a token, A rows that are adjusted, C history tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor

from engine.core.types import Sampling
from engine.runtime.constrain import forbid
from engine.runtime.device import to_device
from engine.runtime.rows import FREQUENCY, PRESENCE, REPETITION, RowTable
from engine.runtime.traits import is_penalized


def adjust(logits_SV: Tensor, table: RowTable, slots: list[int], positions: list[int]) -> Tensor:
    """New logits of rows that draw a token at `positions`; the input is unchanged."""
    logits_SV = logits_SV.clone()
    settings = [table.sampling[slot] for slot in slots]
    _add_bias(logits_SV, settings)
    penalized = [row for row, sampling in enumerate(settings) if is_penalized(sampling)]
    if penalized:
        _penalize(logits_SV, table, penalized, slots, positions)
    num_drawn = [position - table.num_prompt[slot] for slot, position in zip(slots, positions, strict=True)]
    _forbid_stops(logits_SV, settings, num_drawn)
    forbid(logits_SV, table.grammars, slots, settings, num_drawn)
    return logits_SV


def _add_bias(logits_SV: Tensor, settings: list[Sampling]) -> None:
    entries = [(row, token, bias) for row, sampling in enumerate(settings) for token, bias in sampling.logit_bias]
    if entries:
        rows, tokens, biases = zip(*entries, strict=True)
        device = logits_SV.device
        where = (to_device(rows, device), to_device(tokens, device))
        logits_SV.index_put_(where, to_device(biases, device), accumulate=True)


def _penalize(logits_SV: Tensor, table: RowTable, rows: list[int], slots: list[int], positions: list[int]) -> None:
    device = logits_SV.device
    rows_A = to_device(rows, device)
    slots_A = to_device([slots[row] for row in rows], device)
    lengths_A1 = to_device([[positions[row]] for row in rows], device)
    prompts_A1 = to_device([[table.num_prompt[slots[row]]] for row in rows], device)
    fields_AF = table.fields_RF[slots_A]
    index_C = torch.arange(int(max(positions[row] for row in rows)), device=device)
    history_AC = table.tokens_RC[slots_A, : len(index_C)].long()
    is_history_AC = index_C < lengths_A1
    history_AC = torch.where(
        is_history_AC, history_AC, history_AC[:, :1]
    )  # what stands behind the end counts as token 0

    logits_AV = logits_SV[rows_A]
    seen_AC, repetition_A1 = logits_AV.gather(1, history_AC), fields_AF[:, REPETITION, None]
    logits_AV.scatter_(1, history_AC, torch.where(seen_AC > 0, seen_AC / repetition_A1, seen_AC * repetition_A1))
    is_output_AC = (is_history_AC & (index_C >= prompts_A1)).float()
    counts_AV = torch.zeros_like(logits_AV).scatter_add_(1, history_AC, is_output_AC)
    logits_AV -= fields_AF[:, FREQUENCY, None] * counts_AV + fields_AF[:, PRESENCE, None] * (counts_AV > 0)
    logits_SV[rows_A] = logits_AV


def _forbid_stops(logits_SV: Tensor, settings: list[Sampling], num_drawn: list[int]) -> None:
    entries = [
        (row, token)
        for row, sampling in enumerate(settings)
        if num_drawn[row] < sampling.min_tokens and sampling.grammar is None  # a grammar's end is possible
        for token in sampling.stop_token_ids
    ]
    if entries:
        rows, tokens = to_device(entries, logits_SV.device).T
        logits_SV[rows, tokens] = -math.inf
