"""A circuit breaker that always comes back: after a while one probe is let through, and its outcome decides."""

from enum import StrEnum

from router.config import HealthConfig


class BreakerState(StrEnum):
    """CLOSED lets everything through, OPEN nothing, HALF_OPEN has a probe under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts failures in a row of one worker or one pair of workers.

        CLOSED --failures in a row--> OPEN --use after open_s--> HALF_OPEN --success--> CLOSED
                                       ^                             |
                                       +--------- failure -----------+   (open_s doubles)

    A probe whose outcome never comes (its client left) does not block: after open_s more another one is let through.
    Outcomes that arrive while OPEN belong to work begun earlier and change nothing.
    """

    __slots__ = ("_config", "_failures", "_open_s", "_probe_s", "state")

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._open_s = config.breaker_open_s
        self._probe_s = 0.0

    def allows(self, now: float) -> bool:
        """True when work may be sent; while not CLOSED that is one probe every open_s."""
        return self.state is BreakerState.CLOSED or now >= self._probe_s

    def on_use(self, now: float) -> None:
        """Work that `allows` permitted is sent."""
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.HALF_OPEN
            self._probe_s = now + self._open_s

    def on_success(self) -> None:
        """Work sent there went well."""
        if self.state is not BreakerState.OPEN:
            self.state = BreakerState.CLOSED
            self._failures = 0
            self._open_s = self._config.breaker_open_s

    def on_failure(self, now: float) -> None:
        """Work sent there failed, by a fault that may be its own."""
        if self.state is BreakerState.HALF_OPEN:
            self._open_s = min(2 * self._open_s, self._config.breaker_max_open_s)
            self._open(now)
        elif self.state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures >= self._config.breaker_failures:
                self._open(now)

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self._failures = 0
        self._probe_s = now + self._open_s
