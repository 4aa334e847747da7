"""The engine thread: commands in, steps, frames out. It never waits for a transfer, a socket or a client.

Nor for a step: what comes while one runs is handled at once, so that pages are reserved, and requests ended, within
microseconds. The thread sleeps until a command, the outcome of a transfer or the end of a step wakes it.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.core.engine import EngineCore
from engine.core.messages import Frame
from engine.server.dispatch import Dispatch, DispatchPorts, Observer, PublicFeed
from engine.server.inbox import Inbox, SessionClosed
from engine.server.role import Role

logger = logging.getLogger(__name__)

C = TypeVar("C")
O = TypeVar("O")  # noqa: E741
C_contra = TypeVar("C_contra", contravariant=True)
O_co = TypeVar("O_co", covariant=True)

LONGEST_SLEEP_S = 60.0
"""Without anything to wait for: what wakes the thread is said, so this is only a bound."""
AHEAD_S, AHEAD_SHARE = 2e-3, 0.125
"""How long before the end of a running step, in seconds and as a share of it, the next one is launched: long enough for
the host to be done in time, and no longer, since who comes later waits for the step after that one."""
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


@dataclass(frozen=True, slots=True)
class LoopPorts(Generic[C, O]):
    """Where the loop's effects go. All are called from the engine thread and must not wait."""

    deliver: Callable[[list[tuple[int, Frame]]], None]
    """Frames to sessions."""
    transfers: Transfers[C, O]
    observers: tuple[Observer, ...]
    feed: PublicFeed | None
    died: Callable[[], None]
    """The thread ended although nobody asked for it."""
    drained: Callable[[], None]
    """The worker was asked to leave, and nothing holds it any more. May be said again."""
    clock: Callable[[], float]


class EngineLoop(Generic[C, O]):
    """One thread that owns an EngineCore and its role. Everything else talks to it through its inbox."""

    def __init__(self, core: EngineCore, role: Role[C, O], ports: LoopPorts[C, O], inbox: Inbox) -> None:
        self._core, self._ports, self._inbox = core, ports, inbox
        dispatch = DispatchPorts(ports.transfers.submit, logger.warning, ports.observers, ports.feed)
        self._dispatch: Dispatch[C, O] = Dispatch(core, role, dispatch)
        self._stopping = False
        self._moved = False
        """The last turn launched or committed a step: the next one may do more without being woken."""
        self._launch_due_s = 0.0
        """While a step runs, the next one is not launched before."""
        self._deferred = False
        """The last turn launched nothing, since it was too early."""
        core.when_ready(inbox.wake)
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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
            self._dispatch.on_event(event, now)
        for outcome in self._ports.transfers.outcomes():
            self._dispatch.on_outcome(outcome, now)
        self._flush()  # before the step, whose plan takes a while
        self._step()
        self._flush()
        if self._dispatch.may_exit(now):
            self._ports.drained()

    def _idle_s(self) -> float:
        """How long the loop may sleep when nobody wakes it."""
        if self._core.has_work and (self._moved or not self._core.is_waiting):
            return 0.0
        now = self._ports.clock()
        due_s = [self._launch_due_s if self._deferred else now + LONGEST_SLEEP_S]
        if not self._core.has_work:
            self._busy_since_s = None
            due_s.append(self._dispatch.load_due_s)
        deadline_s = self._core.next_deadline_s()
        if deadline_s is not None:
            due_s.append(deadline_s)
        return min(due_s) - now

    def _step(self) -> None:
        started = self._ports.clock()
        if self._busy_since_s is None and self._core.has_work:
            self._busy_since_s = started
        self._launch(started)
        if self._moved or self._core.is_waiting:
            result = self._core.take_result()
        else:
            result = self._core.commit()
            self._moved = result.step_id >= 0
        now = self._ports.clock()
        if result.step_id >= 0:
            self._step_began(now)
        if result.step_id >= 0 and self._busy_since_s is not None:
            for observer in self._ports.observers:
                observer.stepped(len(result.ids), now - self._busy_since_s)
            self._busy_since_s = now
        self._dispatch.on_result(result, now, may_report=self._moved or not self._core.is_waiting)

    def _launch(self, now: float) -> None:
        core = self._core
        self._deferred = core.is_waiting and now < self._launch_due_s
        if self._deferred:
            core.attend(now)
            self._moved = False
            return
        is_first = not core.num_in_flight
        self._moved = core.launch(now)
        if self._moved and is_first:
            self._step_began(now)

    def _step_began(self, now: float) -> None:
        expected_s = self._core.expected_step_s
        self._launch_due_s = now + expected_s - max(AHEAD_S, expected_s * AHEAD_SHARE)

    def _flush(self) -> None:
        frames = self._dispatch.take_frames()
        if frames:
            self._ports.deliver(frames)

    def _wind_down(self) -> None:
        now = self._ports.clock()
        for key in self._dispatch.sessions:
            self._dispatch.on_event(SessionClosed(key), now)
        limit = now + STOP_STEPS_S
        while self._core.has_work and self._ports.clock() < limit:
            self._core.step(self._ports.clock())
