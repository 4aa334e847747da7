"""What of the sampler a request needs. Most need nothing but the likeliest token."""

from engine.core.types import Sampling

GREEDY_BELOW = 1e-5
"""Temperatures that a float32 logit cannot be divided by are greedy."""


def is_greedy(sampling: Sampling) -> bool:
    """The likeliest token is taken."""
    return sampling.temperature < GREEDY_BELOW


def is_penalized(sampling: Sampling) -> bool:
    """Logits depend on the tokens so far."""
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    return penalties != (1.0, 0.0, 0.0)


def is_adjusted(sampling: Sampling) -> bool:
    """Logits may change before temperature."""
    forbids_stops = bool(sampling.min_tokens and sampling.stop_token_ids)
    return is_penalized(sampling) or bool(sampling.logit_bias) or forbids_stops or sampling.grammar is not None


def is_truncated(sampling: Sampling) -> bool:
    """Unlikely tokens cannot be drawn."""
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def is_plain(sampling: Sampling) -> bool:
    """Nothing is wanted but the argmax of the raw logits."""
    return is_greedy(sampling) and not is_adjusted(sampling) and sampling.num_logprobs is None
