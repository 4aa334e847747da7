"""The engine thread: commands in, steps, frames out. It never waits for a transfer, a socket or a client."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.core.engine import EngineCore
from engine.core.errors import BatonError
from engine.core.messages import (
    Adopt,
    Cancel,
    Command,
    DeliverTicket,
    Frame,
    Generate,
    PagesCleared,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
)
from engine.core.types import Request, WorkerLoad
from engine.server.inbox import Event, Inbox, Received, SessionClosed, SessionOpened
from engine.server.role import RequestWord, Role, Word
from engine.server.sessions import Sessions

logger = logging.getLogger(__name__)

C = TypeVar("C")
O = TypeVar("O")  # noqa: E741
C_contra = TypeVar("C_contra", contravariant=True)
O_co = TypeVar("O_co", covariant=True)

LOAD_INTERVAL_S = 0.1
STOP_STEPS_S = 2.0
"""How long `stop` lets steps that were launched come home."""


class Transfers(Protocol[C_contra, O_co]):
    """The transfer thread, kv_transfer.TransferManager, as a worker's shell sees it."""

    def submit(self, command: C_contra) -> None:
        """Hand over one command; returns at once."""

    def outcomes(self) -> Sequence[O_co]:
        """What happened since the last call, in order; never waits."""

    def close(self) -> None:
        """End the thread: afterwards no page is touched."""


class Observer(Protocol):
    """What metrics and logs hear; all calls come from the engine thread."""

    def submitted(self, request: Request) -> None:
        """A session submitted a request; `said` follows until its Finished, HandoffFailed or Ended."""

    def said(self, word: RequestWord, now: float) -> None:
        """The role said something of a request."""

    def stepped(self, num_rows: int, wall_s: float) -> None:
        """A step ended `wall_s` after it was launched or after the step before it, with that many tokens drawn."""

    def loaded(self, load: WorkerLoad) -> None:
        """A load report went out."""


@dataclass(frozen=True, slots=True)
class LoopPorts(Generic[C, O]):
    """Where the loop's effects go. All are called from the engine thread and must not wait."""

    deliver: Callable[[list[tuple[int, Frame]]], None]
    """Frames to sessions."""
    transfers: Transfers[C, O]
    observers: tuple[Observer, ...]
    died: Callable[[], None]
    """The thread ended although nobody asked for it."""
    clock: Callable[[], float]


class EngineLoop(Generic[C, O]):
    """One thread that owns an EngineCore and its role. Everything else talks to it through its inbox."""

    def __init__(self, core: EngineCore, role: Role[C, O], ports: LoopPorts[C, O], inbox: Inbox) -> None:
        self._core, self._role, self._ports, self._inbox = core, role, ports, inbox
        self._sessions = Sessions()
        self._stopping = False
        self._load_due_s = 0.0
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{role.name}", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Cancel all requests, let launched steps come home, end the thread. False: it did not end in time."""
        self._stopping = True
        self._inbox.wake()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._wind_down()
        finally:
            if not self._stopping:
                self._ports.died()

    def _turn(self) -> None:
        events = self._inbox.take(self._idle_s())
        now = self._ports.clock()
        for event in events:
            self._handle(event, now)
        for outcome in self._ports.transfers.outcomes():
            self._perform(self._role.on_outcome(outcome, now), now)
        self._flush()  # before the step, which may wait for the device
        self._step()
        self._flush()

    def _idle_s(self) -> float:
        """How long the loop may sleep when nobody wakes it."""
        if self._core.has_work:
            return 0.0
        self._busy_since_s = None
        deadline_s = self._core.next_deadline_s()
        wake_s = self._load_due_s if deadline_s is None else min(self._load_due_s, deadline_s)
        return wake_s - self._ports.clock()

    def _step(self) -> None:
        started = self._ports.clock()
        if self._busy_since_s is None and self._core.has_work:
            self._busy_since_s = started
        result = self._core.step(started)
        now = self._ports.clock()
        if result.step_id >= 0 and self._busy_since_s is not None:
            for observer in self._ports.observers:
                observer.stepped(len(result.ids), now - self._busy_since_s)
            self._busy_since_s = now
        if result:
            self._sessions.add_rows(result)  # before the words: the last one ends the ownership
            self._perform(self._role.on_result(result, now), now)
        self._sessions.add_events(self._core.drain_events())
        if now >= self._load_due_s:
            self._load_due_s = now + LOAD_INTERVAL_S
            load = self._core.load(now)
            self._sessions.add_load(load)
            for observer in self._ports.observers:
                observer.loaded(load)

    # ------------------------------------------------------------ events and effects

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Received(key, command):
                self._on_command(key, command, now)
            case SessionOpened(key):
                self._sessions.open(key)
                self._load_due_s = now  # a new router learns the load at once
            case SessionClosed(key):
                self._close(key, now)

    def _on_command(self, key: int, command: Command, now: float) -> None:
        match command:
            case SendPrefixes():
                self._sessions.add_events(self._core.drain_events())
                self._sessions.add_snapshot(key, [PagesCleared(), *self._core.stored_pages()])
                return
            case Generate(request) | Prefill(request) | Adopt(request):
                if not self._sessions.bind(request.id, key):
                    logger.warning("session=%d request=%d is not new here: ignored", key, request.id)
                    return
                for observer in self._ports.observers:
                    observer.submitted(request)
            case Cancel(id) | Release(id) | DeliverTicket(id):
                if not self._sessions.may_touch(id, key):
                    logger.warning("session=%d request=%d belongs to another session: ignored", key, id)
                    return
            case PeerLeft(worker_id, incarnation):
                self._sessions.forget_peer(worker_id, incarnation)
            case _:
                pass  # peers concern every session
        try:
            self._perform(self._role.on_command(command, now), now)
        except BatonError as error:
            logger.error("session=%d %s refused: %s", key, type(command).__name__, error)

    def _close(self, key: int, now: float) -> None:
        ids = self._sessions.close(key)
        if ids:
            logger.info("session=%d ended with %d requests: cancelled", key, len(ids))
        for id in ids:
            self._perform(self._role.on_command(Cancel(id), now), now)

    def _perform(self, effects: Sequence[Word | C], now: float) -> None:
        for effect in effects:
            if isinstance(effect, PeerStatus):
                self._sessions.add_peer(effect)
            elif isinstance(effect, RequestWord):
                for observer in self._ports.observers:
                    observer.said(effect, now)
                self._sessions.add(effect)
            else:
                self._ports.transfers.submit(effect)

    def _flush(self) -> None:
        frames = self._sessions.take()
        if frames:
            self._ports.deliver(frames)

    def _wind_down(self) -> None:
        now = self._ports.clock()
        for key in self._sessions.keys:
            self._close(key, now)
        limit = now + STOP_STEPS_S
        while self._core.has_work and self._ports.clock() < limit:
            self._core.step(self._ports.clock())
