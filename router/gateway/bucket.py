"""A token bucket: `per_s` in the long run, `burst` at once. Pure: the time is an argument."""

from router.gateway.tenants import RateLimit


class Bucket:
    """Starts full. What is given back may be more or less than was taken, so the level may fall below zero: then
    nothing is given until it has been made up for.

        level(t) = min(burst, level(t0) + per_s * (t - t0))
    """

    __slots__ = ("_at_s", "_level", "limit")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._level = limit.burst
        self._at_s = now

    def level(self, now: float) -> float:
        """What could be taken at `now`; a clock that stands still or goes back fills nothing."""
        if now > self._at_s:
            self._level = min(self.limit.burst, self._level + (now - self._at_s) * self.limit.per_s)
            self._at_s = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` could be taken if nobody else took anything; 0 when it can be now.

        `amount` is at most the burst: more could never be taken.
        """
        assert amount <= self.limit.burst, "more than the bucket ever holds"
        return max(0.0, amount - self.level(now)) / self.limit.per_s

    def full_s(self, now: float) -> float:
        """Seconds until the bucket is full."""
        return self.wait_s(self.limit.burst, now)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, whether or not it is there."""
        self._level = self.level(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Undo that much of a `take`; a negative amount takes more."""
        self._level = min(self.limit.burst, self.level(now) + amount)

    def change(self, limit: RateLimit, now: float) -> None:
        """New settings from `now` on; what was used stays used."""
        used = self.limit.burst - self.level(now)
        self.limit = limit
        self._level = limit.burst - used
