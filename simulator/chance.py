"""Draws from the one random source of a seed."""

from collections.abc import Sequence
from typing import TypeVar

from router.chance import RandomSource

T = TypeVar("T")


class Chance:
    """What a seed decides. Every draw of a run comes from one source, in the order of events."""

    def __init__(self, source: RandomSource) -> None:
        self.source = source

    def happens(self, probability: float) -> bool:
        """True that often."""
        return self.source.random() < probability

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.source.random()

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.source.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of them, equally likely."""
        return options[int(self.source.random() * len(options))]

    def delay_s(self, usual_s: float, slow_s: float, slow: float) -> float:
        """Around `usual_s`; with probability `slow` up to `slow_s`."""
        limit_s = slow_s if self.source.random() < slow else 2 * usual_s
        return limit_s * self.source.random()
