"""Log probabilities of drawn and of prompt tokens.

They are of the model's own distribution: the softmax of the raw logits, before bias, penalties, temperature and
truncation, as OpenAI's API defines them and vLLM reports them by default.

Shape suffixes: L positions that want log probabilities, V vocabulary, K likeliest tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from engine.core.types import TokenLogprob
from engine.runtime.device import to_host

PROMPT_CHUNK = 256
"""Prompt positions whose logits exist at one time."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of `tokens_L` at L positions, and of the likeliest tokens there, on their way to the host."""

    tokens_L: Tensor
    chosen_L: Tensor
    top_LK: Tensor
    top_tokens_LK: Tensor
    num_top: list[int]
    """How many of K each position asked for."""

    def values(self) -> list[TokenLogprob]:
        """One value a position. The step's Stopwatch must have been waited for."""
        tokens, chosen = self.tokens_L.tolist(), self.chosen_L.tolist()
        tops, top_tokens = self.top_LK.tolist(), self.top_tokens_LK.tolist()
        return [
            TokenLogprob(token, logprob, tuple(zip(ids[:num], top[:num], strict=True)))
            for token, logprob, top, ids, num in zip(tokens, chosen, tops, top_tokens, self.num_top, strict=True)
        ]


def logprobs_of(logits_LV: Tensor, tokens_L: Tensor, num_top: list[int]) -> Logprobs:
    """Log probabilities of `tokens_L` (int64) under raw logits."""
    logprobs_LV = logits_LV.log_softmax(-1)
    chosen_L = logprobs_LV.gather(1, tokens_L[:, None])[:, 0]
    top_LK, top_tokens_LK = logprobs_LV.topk(min(max(num_top), logprobs_LV.shape[1]))
    return Logprobs(to_host(tokens_L), to_host(chosen_L), to_host(top_LK), to_host(top_tokens_LK), num_top)


def chunks(first: int, end: int) -> list[range]:
    """[first, end) in ranges of at most PROMPT_CHUNK."""
    return [range(begin, min(begin + PROMPT_CHUNK, end)) for begin in range(first, end, PROMPT_CHUNK)]
