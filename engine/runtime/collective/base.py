"""A worker's ranks as the executor sees them."""

from collections.abc import Sequence
from typing import Protocol

from engine.models.base import Collective


class Ranks(Protocol):
    """All ranks of one worker."""

    @property
    def members(self) -> Sequence[Collective]:
        """One a rank, each for that rank's thread alone."""

    def abort(self) -> None:
        """A rank cannot go on: end the waits of the others. What they compute from here on is worthless, or an error.
        May be called from any thread, and again."""
