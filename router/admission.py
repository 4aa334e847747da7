"""How much the router takes on: places on workers, a bounded fair queue for them, and an honest refusal beyond."""

from dataclasses import dataclass

from engine.core.errors import Overloaded
from router.config import AdmissionConfig
from router.fair_queue import FairQueue, Share

_MIN_RETRY_AFTER_S = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a call that came."""

    placed: bool
    """It has a place now; else it waits."""
    evicted: int | None = None
    """The waiting call that had to go for it."""


class Admission:
    """Counts the calls that have a place and orders the ones that wait.

    A full queue gives up a call of the tenant that fills it rather than refuse one of a tenant that does not. A waiting
    call that ends (deadline, client gone) is withdrawn.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._running: set[int] = set()
        self._queue = FairQueue()

    @property
    def num_waiting(self) -> int:
        """Calls without a place."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Calls with a place."""
        return len(self._running)

    @property
    def has_place(self) -> bool:
        """Whether one more call may be sent."""
        return len(self._running) < self._config.max_running

    def enter(self, key: int, share: Share, call_s: float, *, room: bool = True) -> Entry:
        """Call `key` comes. Raises Overloaded when it may not even wait.

        `call_s` is how long a call takes on average, from which the hint for a retry follows. `room` is false when
        workers have enough to do as it is.
        """
        if room and self.has_place and not self._queue:
            self._running.add(key)
            self._queue.charge(share)
            return Entry(placed=True)
        evicted: int | None = None
        if len(self._queue) >= self._config.max_queued:
            evicted = self._queue.last_of_longest(share.tenant, share.weight)
            if evicted is None:
                raise self.overloaded(call_s)
        self._queue.push(key, share)
        return Entry(placed=False, evicted=evicted)

    def overloaded(self, call_s: float) -> Overloaded:
        """Why a call may not wait, and when to come back."""
        wait_s = (len(self._queue) + 1) * call_s / self._config.max_running
        return Overloaded(
            f"{len(self._queue)} requests are waiting already", retry_after_s=max(wait_s, _MIN_RETRY_AFTER_S)
        )

    def prompt_before(self, share: Share) -> int:
        """Prompt tokens of waiting calls that are likely to go before a new one."""
        return self._queue.prompt_before(share)

    def leave(self, key: int) -> None:
        """Call `key` is over."""
        if key in self._queue:
            self._queue.remove(key)
        else:
            self._running.remove(key)

    def next(self) -> int | None:
        """The waiting call that has a place now, if there is one."""
        if not self._queue or not self.has_place:
            return None
        key = self._queue.pop()
        self._running.add(key)
        return key

    def check_integrity(self, keys: set[int]) -> None:
        """Raise AssertionError unless exactly the live calls `keys` run or wait, within the limits."""
        self._queue.check_integrity()
        waiting = set(self._queue)
        assert self._running.isdisjoint(waiting)
        assert self._running | waiting == keys
        assert len(self._running) <= self._config.max_running
        assert len(waiting) <= self._config.max_queued
