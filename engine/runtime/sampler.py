"""One drawn token a row, rows with different settings in one pass.

    logits --adjust--> bias, penalties, min_tokens --/ temperature--> top_k, top_p, min_p --softmax--> draw

top_k keeps the k likeliest tokens; top_p the fewest of those, renormalized, whose probability reaches p; min_p those
at least min_p times as likely as the likeliest (the order of transformers). All three keep a prefix of the tokens
sorted by logit, so a row has one floor: the smallest logit that may be drawn. Ties with the floor stay in.

The draw inverts the cumulative distribution, in the order of the vocabulary, at one uniform number (see noise): equal
logits, settings, seed and position give the same token in any batch.

Shape suffixes: S rows that draw a token, V vocabulary, N candidates.
"""

import math

import torch
from torch import Tensor

from engine.runtime.adjust import adjust
from engine.runtime.device import to_device
from engine.runtime.noise import uniform
from engine.runtime.rows import MIN_P, TEMPERATURE, TOP_K, TOP_P, RowTable
from engine.runtime.traits import GREEDY_BELOW, is_adjusted, is_greedy, is_truncated

NUM_CANDIDATES = 256
"""Sorted first; a nucleus that holds more tokens is found by sorting the whole vocabulary."""


def draw(logits_SV: Tensor, table: RowTable, slots: list[int], positions: list[int]) -> Tensor:
    """tokens_S, int64.

    Args:
        logits_SV: float32, left unchanged.
        slots: of each row in `table`.
        positions: where each drawn token will stand; the table has all tokens before it.
    """
    if table.special.isdisjoint(slots):
        return logits_SV.argmax(-1)
    settings = [table.sampling[slot] for slot in slots]
    if any(is_adjusted(sampling) for sampling in settings):
        logits_SV = adjust(logits_SV, table, slots, positions)
    if all(is_greedy(sampling) for sampling in settings):
        return logits_SV.argmax(-1)
    slots_S, positions_S = to_device([slots, positions], logits_SV.device)
    fields_SF = table.fields_RF[slots_S]
    greedy_S = fields_SF[:, TEMPERATURE] < GREEDY_BELOW
    scaled_SV = logits_SV / torch.where(greedy_S, 1.0, fields_SF[:, TEMPERATURE])[:, None]
    if any(is_truncated(sampling) for sampling in settings):
        largest_k = max(sampling.top_k for sampling in settings)
        floor_S = floors(scaled_SV, fields_SF[:, TOP_K], fields_SF[:, TOP_P], fields_SF[:, MIN_P], largest_k)
        scaled_SV = scaled_SV.masked_fill_(scaled_SV < floor_S[:, None], -math.inf)
    drawn_S = invert_cdf(scaled_SV, uniform(table.seeds_R[slots_S], positions_S))
    return torch.where(greedy_S, logits_SV.argmax(-1), drawn_S)


def floors(scaled_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor, largest_k: int) -> Tensor:
    """floor_S: the smallest logit of each row that top_k, top_p and min_p leave; -inf where all stay.

    Args:
        top_k_S: 0 is off. top_p_S: 1 is off. min_p_S: 0 is off.
        largest_k: the largest of top_k_S, known to the host.
    """
    num_vocab = scaled_SV.shape[1]
    top_k_S = torch.where(top_k_S > 0, top_k_S, num_vocab).clamp(max=num_vocab)
    num_candidates = min(num_vocab, max(NUM_CANDIDATES, largest_k))
    floor_S, is_whole_S = _sorted_floors(scaled_SV, top_k_S, top_p_S, num_candidates)
    if not bool(is_whole_S.all()):
        rest = ~is_whole_S
        floor_S[rest], _ = _sorted_floors(scaled_SV[rest], top_k_S[rest], top_p_S[rest], num_vocab)
    return torch.maximum(floor_S, scaled_SV.amax(-1) + min_p_S.log())


def _sorted_floors(scaled_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """floor_S by top_k and top_p among the likeliest candidates, and whether they hold all that the row keeps."""
    num_vocab = scaled_SV.shape[1]
    candidates_SN = scaled_SV.topk(num_candidates).values
    in_top_k_SN = torch.arange(num_candidates, device=scaled_SV.device) < top_k_S[:, None]
    by_k_S = candidates_SN.masked_fill(~in_top_k_SN, -math.inf).logsumexp(-1)
    total_S = torch.where(top_k_S < num_vocab, by_k_S, scaled_SV.logsumexp(-1))
    probs_SN = torch.exp(candidates_SN - total_S[:, None])
    before_SN = probs_SN.cumsum(-1) - probs_SN
    top_p_S = torch.where(top_p_S < 1.0, top_p_S, math.inf)  # sums of float32 may stop just short of 1
    num_kept_S = (in_top_k_SN & (before_SN < top_p_S[:, None])).sum(-1).clamp(min=1)
    floor_S = candidates_SN.gather(1, num_kept_S[:, None] - 1)[:, 0]
    is_open_S = top_p_S.isinf() & (top_k_S >= num_vocab)
    is_whole_S = is_open_S | (num_kept_S < num_candidates) | (top_k_S <= num_candidates) | (num_candidates == num_vocab)
    return torch.where(is_open_S, -math.inf, floor_S), is_whole_S


def invert_cdf(scaled_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """tokens_S: the first token at which the cumulative probability exceeds the row's uniform number."""
    cdf_SV = torch.softmax(scaled_SV, -1).cumsum(-1, dtype=torch.float64)
    target_S1 = (uniform_S * cdf_SV[:, -1])[:, None]
    # The product can round up to the total: then the last token with any probability is the one.
    target_S1 = torch.minimum(target_S1, cdf_SV[:, -1:].nextafter(cdf_SV.new_zeros(1)))
    # Broken logits (NaN) find no token; whatever is returned must still be one.
    return torch.searchsorted(cdf_SV, target_S1, right=True)[:, 0].clamp_(max=cdf_SV.shape[1] - 1)
