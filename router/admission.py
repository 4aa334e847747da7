"""How much the router takes on: places on workers, a bounded queue for them, and an honest refusal beyond."""

from heapq import heappop, heappush

from engine.core.errors import Overloaded
from router.config import AdmissionConfig

_MIN_RETRY_AFTER_S = 0.1


class Admission:
    """Counts the calls that have a place and orders the ones that wait: by priority, then by arrival.

    A waiting call that ends (deadline, client gone) is withdrawn; its heap entry is skipped when its turn comes.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._running: set[int] = set()
        self._waiting: dict[int, int] = {}
        """Call -> priority."""
        self._heap: list[tuple[int, int, int]] = []
        self._arrivals = 0

    @property
    def num_waiting(self) -> int:
        """Calls without a place."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Calls with a place."""
        return len(self._running)

    def enter(self, key: int, priority: int, call_s: float) -> bool:
        """True: call `key` has a place now. False: it waits. Raises Overloaded when it may not even wait.

        `call_s` is how long a call takes on average, from which the hint for a retry follows.
        """
        if len(self._running) < self._config.max_running:
            self._running.add(key)
            return True
        if len(self._waiting) >= self._config.max_queued:
            wait_s = (len(self._waiting) + 1) * call_s / self._config.max_running
            raise Overloaded(
                f"{len(self._waiting)} requests are waiting already", retry_after_s=max(wait_s, _MIN_RETRY_AFTER_S)
            )
        self._arrivals += 1
        self._waiting[key] = priority
        heappush(self._heap, (priority, self._arrivals, key))
        return False

    def leave(self, key: int) -> int | None:
        """Call `key` is over. Returns the waiting call that has its place now, if any."""
        if self._waiting.pop(key, None) is not None:
            return None
        self._running.remove(key)
        while self._heap:
            _, _, following = heappop(self._heap)
            if self._waiting.pop(following, None) is not None:
                self._running.add(following)
                return following
        return None

    def check_integrity(self, keys: set[int]) -> None:
        """Raise AssertionError unless exactly the live calls `keys` run or wait, within the limits."""
        assert self._running.isdisjoint(self._waiting)
        assert self._running | self._waiting.keys() == keys
        assert len(self._running) <= self._config.max_running
        assert not self._waiting or len(self._running) == self._config.max_running
