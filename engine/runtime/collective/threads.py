"""Ranks on the CPU: they show each other their tensors, and every rank adds them up in the same order."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.core.errors import RankLost


class ThreadRanks:
    """Implements Ranks."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        # Two sets in turn: who is late in looking at one still finds it while others fill the next.
        self._shown: tuple[list[Tensor], list[Tensor]] = ([torch.empty(0)] * size, [torch.empty(0)] * size)
        self.members: Sequence[ThreadRank] = [ThreadRank(self._barrier, self._shown, rank) for rank in range(size)]

    def abort(self) -> None:
        """See Ranks: waits end with RankLost."""
        self._barrier.abort()


class ThreadRank:
    """Implements engine.models.base.Collective for one thread."""

    def __init__(self, barrier: threading.Barrier, shown: tuple[list[Tensor], list[Tensor]], rank: int) -> None:
        self._barrier, self._shown, self._rank = barrier, shown, rank
        self._turn = 0

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        """See Collective."""
        first, *others = self._show(x_TD)
        for other in others:
            first = first + other
        return first

    def add_norm(self, x_TD: Tensor, stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        """See Collective."""
        return None

    def all_gather(self, x_SV: Tensor) -> Tensor:
        """See Collective."""
        return torch.cat(self._show(x_SV), dim=1)

    def _show(self, mine: Tensor) -> list[Tensor]:
        """Every rank's tensor, in their order. Raises RankLost."""
        shown, self._turn = self._shown[self._turn], 1 - self._turn
        shown[self._rank] = mine
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RankLost("another rank of this worker stopped") from error
        return list(shown)
