"""From rope_parameters (transformers 5) or rope_scaling and rope_theta (older files) to a RopeConfig. Pure."""

import math
from collections.abc import Callable

from engine.core.errors import CheckpointError
from engine.models.config import RopeConfig
from engine.models.facts import Facts

DEFAULT_THETA = 10000.0


def parse_rope(facts: Facts, head_dim: int, max_model_len: int | None) -> tuple[RopeConfig, int]:
    """The rotary embedding of a checkpoint and the longest sequence to serve, in tokens.

    Args:
        facts: config.json.
        head_dim: all of which is rotated.
        max_model_len: what the operator asks for; None takes the checkpoint's own maximum.

    Raises:
        CheckpointError: an unknown kind, a missing or wrong value, or `max_model_len` beyond what the kind reaches.
    """
    rope = facts.nested("rope_scaling") or facts.nested("rope_parameters") or Facts(facts.path, {})
    kind = _checked_kind(facts, rope)
    theta = rope.number("rope_theta", facts.number("rope_theta", DEFAULT_THETA))
    longest = _longest(facts, rope, kind)
    if max_model_len is not None and not 1 <= max_model_len <= longest:
        raise CheckpointError(f"{facts.path}: max_model_len is {max_model_len}, expected 1 to {longest}")
    if kind == "dynamic":
        max_position = max_model_len or facts.integer("max_position_embeddings")
        return RopeConfig(theta=_dynamic_theta(facts, rope, theta, head_dim, max_position)), max_position
    return _KINDS[kind](facts, rope, theta), max_model_len or longest


def _checked_kind(facts: Facts, rope: Facts) -> str:
    """The kind of scaling, once everything that holds for all kinds is checked."""
    name = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.text(name, "default")
    if kind not in _KINDS:
        raise rope.wrong(name, f"one of {', '.join(_KINDS)}")
    for owner in (facts, rope):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise owner.wrong("partial_rotary_factor", "1.0")
        if owner.number("rope_theta", DEFAULT_THETA) <= 1:
            raise owner.wrong("rope_theta", "a number above 1")
    for key, value in rope.values.items():
        if isinstance(value, dict):
            raise rope.wrong(key, "one set of rope parameters for all layers")
    return kind


def _longest(facts: Facts, rope: Facts, kind: str) -> int:
    """Tokens that a scaled embedding reaches: files give the trained length, the scaled one, or both."""
    stated = facts.integer("max_position_embeddings")
    if kind in ("linear", "dynamic"):
        return int(stated * rope.number("factor", minimum=1))
    if kind == "yarn":
        return max(stated, int(_original_max_position(facts, rope) * _yarn_factor(facts, rope)))
    return stated


def _original_max_position(facts: Facts, rope: Facts) -> int:
    stated = facts.integer("max_position_embeddings")
    return facts.integer("original_max_position_embeddings", rope.integer("original_max_position_embeddings", stated))


def _default(_facts: Facts, _rope: Facts, theta: float) -> RopeConfig:
    return RopeConfig(theta=theta)


def _linear(_facts: Facts, rope: Facts, theta: float) -> RopeConfig:
    return RopeConfig(theta=theta, kind="linear", factor=rope.number("factor", minimum=1))


def _dynamic_theta(facts: Facts, rope: Facts, theta: float, head_dim: int, max_position: int) -> float:
    """NTK-aware theta for sequences of up to `max_position` tokens; the plain one within the trained length.

    Growing theta with the sequence, as a single-sequence program can, would change the keys of pages that other
    sequences share.
    """
    trained, factor = facts.integer("max_position_embeddings"), rope.number("factor", minimum=1)
    stretch = factor * max(max_position, trained) / trained - (factor - 1)
    return float(theta * stretch ** (head_dim / (head_dim - 2)))


def _llama3(facts: Facts, rope: Facts, theta: float) -> RopeConfig:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low <= 0:
        raise rope.wrong("low_freq_factor", "a number above 0")
    if high <= low:
        raise rope.wrong("high_freq_factor", "a number above low_freq_factor")
    return RopeConfig(
        theta=theta,
        kind="llama3",
        factor=rope.number("factor", minimum=1),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_original_max_position(facts, rope),
    )


def _yarn(facts: Facts, rope: Facts, theta: float) -> RopeConfig:
    factor = _yarn_factor(facts, rope)
    mscale, mscale_all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
    else:
        attention_factor = _yarn_mscale(factor, 1.0)
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        attention_factor=rope.number("attention_factor", attention_factor),
        original_max_position=_original_max_position(facts, rope),
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        truncate=rope.boolean("truncate", True),
    )


def _yarn_factor(facts: Facts, rope: Facts) -> float:
    stretched = facts.integer("max_position_embeddings") / _original_max_position(facts, rope)
    return rope.number("factor", stretched, minimum=1)


def _yarn_mscale(factor: float, mscale: float) -> float:
    """Attention temperature of YaRN, section 3.4 of arXiv:2309.00071."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_KINDS: dict[str, Callable[[Facts, Facts, float], RopeConfig]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}
