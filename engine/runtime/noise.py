"""One uniform number for each (seed, position): the only randomness of sampling.

A counter-based generator has no state to carry: the draw at a position is the same whatever runs beside it, on which
device, and wherever the request resumes. The mixer is the finalizer of SplitMix64 (Steele, Lea, Flood 2014,
doi:10.1145/2714064.2660195) in wrapping 64-bit integers, which every torch device computes alike.

Shape suffixes: S rows that draw a token.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number: how torch holds it."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def seed_bits(seed: int) -> int:
    """An unsigned 64-bit seed as the int64 that `uniform` takes."""
    return _signed(seed & ((1 << 64) - 1))


def uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """uniform_S in [0, 1), float64 with 53 random bits.

    Args:
        seeds_S: int64, from `seed_bits`.
        positions_S: int64, where in its sequence each drawn token will stand.
    """
    bits_S = _mix(_mix(seeds_S) + (positions_S + 1) * _GOLDEN)
    return _shift_right(bits_S, 11).double() * 2.0**-53


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift; torch's own copies the sign bit in."""
    return torch.bitwise_right_shift(bits, count) & ((1 << (64 - count)) - 1)
