"""The random source of the router core: an argument, so that a run can be repeated."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class RandomSource(Protocol):
    """What the core needs of random.Random."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def getrandbits(self, k: int, /) -> int:
        """k random bits."""

    def choice(self, seq: Sequence[T], /) -> T:
        """One of `seq`, equally likely."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """k different ones of `population`."""
