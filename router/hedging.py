"""When a call whose first token is late is sent to a second pair of workers, too; the first token wins. Off by default.

Late is later than all but one in twenty of the prompts of its size were, so no number is set by hand. Of all calls a
share at most is hedged, and only onto workers that have nothing to do: a service that is full gains nothing from doing
work twice. Random numbers are drawn by seed and position, so the answer is the same whichever attempt wins.
"""

from bisect import bisect_left, insort
from collections import deque

from router.config import HedgeConfig

LATE = 0.95
"""Quantile of the times to a first token."""
WINDOW = 256
"""Latest times of each size that count."""
MIN_TIMES = 40
"""Two of which are beyond LATE: from fewer nothing is concluded."""
AGAIN_S = 0.01
"""Before a late call is looked at once more, at least: where tokens come at once, late is no time at all."""
_MAX_CREDIT = 4.0
"""Hedges that may come at once after a time without any."""


class _Times:
    """The latest times of prompts of one size, in the order of arrival and by length."""

    __slots__ = ("_latest", "_sorted")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, took_s: float) -> None:
        self._latest.append(took_s)
        insort(self._sorted, took_s)
        if len(self._latest) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]

    @property
    def late_s(self) -> float | None:
        count = len(self._sorted)
        return self._sorted[int(LATE * count)] if count >= MIN_TIMES else None


class Hedging:
    """Knows how long first tokens take, by how much of the prompt is new, and how many hedges are left."""

    def __init__(self, config: HedgeConfig) -> None:
        self._share = config.max_share
        self._credit = 0.0
        self._times: dict[int, _Times] = {}
        """By the number of binary digits of the new tokens."""

    @property
    def enabled(self) -> bool:
        """Whether calls are hedged at all."""
        return self._share > 0.0

    def sent(self) -> None:
        """One more call was sent: its share of a hedge may be used."""
        self._credit = min(self._credit + self._share, _MAX_CREDIT)

    def observe(self, num_new: int, took_s: float) -> None:
        """The first token of a prompt with so many new tokens took that long, or at least that long."""
        self._times.setdefault(num_new.bit_length(), _Times()).add(took_s)

    def delay_s(self, num_new: int) -> float | None:
        """After that time such a prompt's first token is late; None while too little is known."""
        times = self._times.get(num_new.bit_length())
        return None if times is None else times.late_s

    def take(self) -> bool:
        """Use one hedge, if there is one left."""
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
