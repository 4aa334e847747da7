"""What the rest of a worker tells its engine thread."""

import queue
from dataclasses import dataclass

from engine.core.messages import Command


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Router session `key` is there."""

    key: int


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """Router session `key` is gone."""

    key: int


@dataclass(frozen=True, slots=True)
class Received:
    """Session `key` sent `command`."""

    key: int
    command: Command


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The process was asked to leave within `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class SnapshotAsked:
    """Readers of the public feed want all that the prefix cache holds."""

    with_tokens: bool


Event = SessionOpened | SessionClosed | Received | DrainAsked | SnapshotAsked


class Inbox:
    """A queue with one reader, the engine thread. Writers never wait and wake it at once."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def post(self, event: Event) -> None:
        """Hand over one event. From any thread."""
        self._queue.put(event)

    def wake(self) -> None:
        """Something changed that is not an event: outcomes of transfers, a wish to stop. From any thread."""
        self._queue.put(None)

    def take(self, timeout_s: float) -> list[Event]:
        """All events that are there. With none, wait for one or a wake, `timeout_s` at most."""
        events: list[Event] = []
        try:
            event = self._queue.get(timeout=timeout_s) if timeout_s > 0 else self._queue.get_nowait()
            while True:
                if event is not None:
                    events.append(event)
                event = self._queue.get_nowait()
        except queue.Empty:
            return events
