"""Rotary position embedding: frequencies of each kind of scaling, and the rotation itself.

Su et al. 2021 (arXiv:2104.09864), halves rotated as in Hugging Face's Llama family. The operations and their order are
those of transformers, because a last-bit difference in a frequency is an angle at position 100,000.

Shape suffixes: P positions, T tokens, N heads, E head dim, F half of it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from engine.models.config import RopeConfig


def rotation_table(rope: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """cos_sin_PE in float32 on the CPU: row p is [cos | sin] of position p, attention factor included."""
    frequencies_F = _FREQUENCIES[rope.kind](rope, head_dim)
    angles_PF = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies_F
    return torch.cat((angles_PF.cos(), angles_PF.sin()), dim=-1) * rope.attention_factor


def rotate(x_TNE: Tensor, cos_sin_TE: Tensor) -> Tensor:
    """Rotate every head of each token by the angles of its position."""
    cos_TF, sin_TF = cos_sin_TE[:, None].chunk(2, dim=-1)
    low_TNF, high_TNF = x_TNE.chunk(2, dim=-1)
    new_low_TNF = (low_TNF * cos_TF).addcmul_(high_TNF, sin_TF, value=-1)
    new_high_TNF = (high_TNF * cos_TF).addcmul_(low_TNF, sin_TF)
    return torch.cat((new_low_TNF, new_high_TNF), dim=-1)


def _default(rope: RopeConfig, head_dim: int) -> Tensor:
    return 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _linear(rope: RopeConfig, head_dim: int) -> Tensor:
    return _default(rope, head_dim) / rope.factor


def _llama3(rope: RopeConfig, head_dim: int) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, a ramp between: Llama 3.1's published inference code."""
    frequencies_F = _default(rope, head_dim)
    waves_F = 2 * math.pi / frequencies_F
    longest, shortest = (rope.original_max_position / x for x in (rope.low_freq_factor, rope.high_freq_factor))
    ramp_F = (rope.original_max_position / waves_F - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    stretched_F = torch.where(waves_F > longest, frequencies_F / rope.factor, frequencies_F)
    blended_F = (1 - ramp_F) * stretched_F / rope.factor + ramp_F * stretched_F
    between_F = (waves_F >= shortest) & (waves_F <= longest)
    return torch.where(between_F, blended_F, stretched_F)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Frequencies interpolated by part, section 3.2 of arXiv:2309.00071."""
    powers_F = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    low, high = (_turning_dim(rope, head_dim, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    keep_F = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return 1.0 / (rope.factor * powers_F) * (1 - keep_F) + 1.0 / powers_F * keep_F


def _turning_dim(rope: RopeConfig, head_dim: int, turns: float) -> float:
    """The dimension that turns `turns` times over the trained length."""
    wave = rope.original_max_position / (turns * 2 * math.pi)
    return head_dim * math.log(wave) / (2 * math.log(rope.theta))


_FREQUENCIES: dict[str, Callable[[RopeConfig, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
