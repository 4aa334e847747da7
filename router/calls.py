"""All live calls of a router: by the shell's key, by attempt, and by when something is due for them."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from router.flow import Flow

_COMPACT_ABOVE = 64


class Timers:
    """When something is due for a call; one entry a call counts, the last one set. Stale heap entries are dropped in
    time, so memory follows the live calls and not the past ones.
    """

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: int, due_s: float) -> None:
        """Call `key` is due at `due_s`, and no more at any other time."""
        self._due[key] = due_s
        heappush(self._heap, (due_s, key))
        if len(self._heap) > 2 * len(self._due) + _COMPACT_ABOVE:
            self._heap = [(due, each) for each, due in self._due.items()]
            heapify(self._heap)

    def clear(self, key: int) -> None:
        """Nothing is due for call `key`."""
        self._due.pop(key, None)

    def keys(self) -> list[int]:
        """Calls for which something is due, sooner or later."""
        return list(self._due)

    def pop_due(self, now: float) -> Iterator[int]:
        """Calls whose time has come, earliest first; each is cleared as it is handed out."""
        while self._heap and self._heap[0][0] <= now:
            due_s, key = heappop(self._heap)
            if self._due.get(key) == due_s:
                del self._due[key]
                yield key


class CallTable:
    """Owns the flows. A flow is here from its arrival to its outcome; an attempt while it is under way."""

    def __init__(self) -> None:
        self.flows: dict[int, Flow] = {}
        self.by_attempt: dict[int, Flow] = {}
        self.deadlines = Timers()
        self.retries = Timers()
        self.hedges = Timers()

    def add(self, flow: Flow) -> None:
        """A call arrived."""
        self.flows[flow.key] = flow
        self.deadlines.set(flow.key, flow.deadline_s)

    def remove(self, flow: Flow) -> None:
        """A call has its outcome; its attempt has been detached."""
        del self.flows[flow.key]
        self.deadlines.clear(flow.key)
        self.retries.clear(flow.key)
        self.hedges.clear(flow.key)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every live call is either under way or will be looked at again."""
        for attempt, flow in self.by_attempt.items():
            assert flow.attempt_of(attempt) is not None and flow.key in self.flows
        assert sum(len(flow.attempts) for flow in self.flows.values()) == len(self.by_attempt)
        assert set(self.deadlines.keys()) == self.flows.keys(), "each call has a deadline"
        assert self.flows.keys() >= set(self.retries.keys())
