"""Virtual time: a heap of what happens next. An hour in which nothing happens costs nothing."""

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Clock:
    """Runs actions in order of their time, equal times in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.trace = 0
        """A hash over everything that happened: the same for the same run, in any process."""
        self._due: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, when_s: float, action: Action) -> None:
        """Run `action` at that time, or now if it has passed."""
        self._count += 1
        heappush(self._due, (max(when_s, self.now), self._count, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Run `action` when that much time has passed."""
        self.at(self.now + delay_s, action)

    def note(self, *numbers: float) -> None:
        """Take something that happened into the trace. Numbers only: their hash is the same in every process."""
        self.trace = hash((self.trace, numbers))

    def run(self, until_s: float) -> None:
        """Let time pass until then."""
        due = self._due
        while due and due[0][0] <= until_s:
            when_s, number, action = heappop(due)
            self.now = when_s
            self.trace = hash((self.trace, when_s, number))
            action()
        self.now = max(self.now, until_s)
