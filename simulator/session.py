"""The stream between the router and one incarnation of a worker: ordered, delayed, sometimes stuck, lost as a whole."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.core.messages import Adopt, Cancel, Command, DeliverTicket, Frame, Generate, Prefill, Release
from engine.server.inbox import Received, SessionClosed, SessionOpened
from simulator.chance import Chance
from simulator.clock import Clock
from simulator.worker import SimWorker

REPEATABLE = (Cancel, Release, DeliverTicket)
"""Commands that may come twice."""
REPEAT = 0.05
"""How often they do."""


@dataclass(slots=True)
class _Way:
    """One direction of a stream. Mutable."""

    waiting: deque[Callable[[], None]] = field(default_factory=deque)
    arrives_s: float = 0.0
    """When what was sent last arrives."""


class SimSession:
    """One session from its opening to its loss. Each side hears of the loss on its own, sooner or later."""

    def __init__(self, key: int, worker: SimWorker, clock: Clock, chance: Chance, slow: float) -> None:
        """`slow` says how often a message takes long."""
        self.key, self.worker = key, worker
        self.open = True
        self._clock, self._chance, self._slow = clock, chance, slow
        self._down, self._up = _Way(), _Way()
        self._stuck_until_s = 0.0
        worker.engine.post(SessionOpened(key))

    def stick(self, for_s: float) -> None:
        """Nothing arrives on either side for a while; nothing is lost either."""
        self._stuck_until_s = max(self._stuck_until_s, self._clock.now + for_s)

    def lose(self, worker_hears_in_s: float) -> None:
        """The stream is gone, with all that was on its way."""
        self.open = False
        worker = self.worker
        worker.later(self._clock.now + worker_hears_in_s, lambda: worker.engine.post(SessionClosed(self.key)))

    def send(self, command: Command) -> None:
        """From the router. A deadline crosses as the time that is left."""
        sent_s = self._clock.now
        count = 2 if isinstance(command, REPEATABLE) and self._chance.happens(REPEAT) else 1
        for _ in range(count):
            self._go(self._down, lambda: self._post(command, sent_s))

    def deliver(self, frame: Frame, hear: Callable[[Frame], None]) -> None:
        """From the worker."""
        self._go(self._up, lambda: hear(frame))

    # ------------------------------------------------------------ inside

    def _go(self, way: "_Way", action: Callable[[], None]) -> None:
        """Each arrival takes what was sent first."""
        way.arrives_s = max(way.arrives_s, self._clock.now + self._chance.delay_s(0.0003, 0.03, self._slow))
        way.waiting.append(action)
        self._clock.at(way.arrives_s, lambda: self._arrive(way))

    def _arrive(self, way: "_Way") -> None:
        if not self.open:
            return
        if self._clock.now < self._stuck_until_s:
            self._clock.at(self._stuck_until_s, lambda: self._arrive(way))
        else:
            way.waiting.popleft()()

    def _post(self, command: Command, sent_s: float) -> None:
        if not self.worker.alive:
            return
        match command:
            case Generate(request) | Prefill(request) | Adopt(request):
                # Read when the process gets to it, so a stopped worker's requests do not live longer for it.
                left_s = request.deadline_s - sent_s
                now = self.worker.time()
                own = replace(request, arrival_s=now, deadline_s=now + left_s)
                self.worker.engine.post(Received(self.key, type(command)(own)))
            case _:
                self.worker.engine.post(Received(self.key, command))
