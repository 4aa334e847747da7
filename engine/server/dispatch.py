"""What a worker does with whatever happens to it: commands, ended steps and transfers in, frames and effects out. Pure.

The engine thread drives it with the machine's clock, the simulator with its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from engine.core.engine import EngineCore
from engine.core.errors import BatonError
from engine.core.messages import (
    Adopt,
    Cancel,
    Command,
    DeliverTicket,
    Drain,
    Frame,
    Generate,
    KVEvent,
    PagesCleared,
    PeerJoined,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
)
from engine.core.result import StepResult
from engine.core.types import Request, WorkerLoad
from engine.server.departure import Departure
from engine.server.inbox import DrainAsked, Event, Received, SessionClosed, SessionOpened, SnapshotAsked
from engine.server.role import RequestWord, Role, Word
from engine.server.sessions import Sessions

C = TypeVar("C")
O = TypeVar("O")  # noqa: E741

LOAD_INTERVAL_S = 0.1


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

    def connected(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """With each load report: routers with an open session, and every worker that one of them says is there."""


class PublicFeed(Protocol):
    """Where changes of the prefix cache go besides the routers; kv_events.publisher.EventPublisher. Never waits."""

    def publish(self, events: Sequence[KVEvent], view_digest: int, num_pages: int) -> None:
        """What changed, and what the cache holds after it."""

    def snapshot(self, events: Sequence[KVEvent], with_tokens: bool) -> None:
        """All that the cache holds, as of the last `publish`."""


@dataclass(frozen=True, slots=True)
class DispatchPorts(Generic[C]):
    """Where effects go that are no frames. None may wait."""

    submit: Callable[[C], None]
    """To the transfer thread."""
    warn: Callable[[str], None]
    """What should not have happened, for the log."""
    observers: tuple[Observer, ...] = ()
    feed: PublicFeed | None = None


class Dispatch(Generic[C, O]):
    """Joins an EngineCore, its role and the sessions of routers. `now` is seconds on the worker's own clock."""

    def __init__(self, core: EngineCore, role: Role[C, O], ports: DispatchPorts[C]) -> None:
        self._core, self._role, self._ports = core, role, ports
        self._sessions = Sessions()
        self._departure = Departure()
        self._num_page_faults = 0
        self._page_fault = ""
        """Of the last load report."""
        self.load_due_s = 0.0
        """When the next load report is due."""

    @property
    def sessions(self) -> tuple[int, ...]:
        """The router sessions that are open."""
        return self._sessions.keys

    @property
    def num_requests(self) -> int:
        """Requests that routers submitted and were not told the end of."""
        return self._sessions.num_requests

    def on_event(self, event: Event, now: float) -> None:
        """A session opened, closed or said something."""
        match event:
            case Received(key, command):
                self._on_command(key, command, now)
            case SessionOpened(key):
                self._sessions.open(key)
                self.load_due_s = now  # a new router learns the load at once
            case SessionClosed(key):
                for id in self._sessions.close(key):
                    self._perform(self._role.on_command(Cancel(id), now), now)
            case DrainAsked(grace_s):
                self._depart(grace_s, now)
            case SnapshotAsked(with_tokens):
                self._tell_events()
                if self._ports.feed is not None:
                    self._ports.feed.snapshot(self._core.stored_pages(with_tokens), with_tokens)

    def on_outcome(self, outcome: O, now: float) -> None:
        """The transfer thread reports."""
        self._perform(self._role.on_outcome(outcome, now), now)

    def on_result(self, result: StepResult, now: float, *, may_report: bool = True) -> None:
        """A step was committed, or something else changed in the core.

        Args:
            may_report: whether this is a time for a load report. Routers take new reports for a sign of life, so there
                are none while a step goes on that may never end.
        """
        if result:
            self._sessions.add_rows(result)  # before the words: the last one ends the ownership
            self._perform(self._role.on_result(result, now), now)
        self._tell_events()
        if may_report and now >= self.load_due_s:
            self.load_due_s = now + LOAD_INTERVAL_S
            self._report_load(now)

    def may_exit(self, now: float) -> bool:
        """Whether this worker was asked to leave and holds nothing, or its time is over. To be asked every turn."""
        return self._departure.may_exit(self._core.is_empty and not self.num_requests, now)

    def take_frames(self) -> list[tuple[int, Frame]]:
        """What there is to say, by session."""
        return self._sessions.take()

    # ------------------------------------------------------------ inside

    def _on_command(self, key: int, command: Command, now: float) -> None:
        match command:
            case Drain(grace_s):
                self._depart(grace_s, now)
                return
            case SendPrefixes():
                self._tell_events()
                self._sessions.add_snapshot(key, [PagesCleared(), *self._core.stored_pages()])
                return
            case Generate(request) | Prefill(request) | Adopt(request):
                if not self._sessions.bind(request.id, key):
                    self._ports.warn(f"session={key} request={request.id} is not new here: ignored")
                    return
                for observer in self._ports.observers:
                    observer.submitted(request)
            case Cancel(id) | Release(id) | DeliverTicket(id):
                if not self._sessions.may_touch(id, key):
                    self._ports.warn(f"session={key} request={id} belongs to another session: ignored")
                    return
            case PeerJoined() | PeerLeft():
                self._on_peer(key, command)
        try:
            self._perform(self._role.on_command(command, now), now)
        except BatonError as error:
            self._ports.warn(f"session={key} {type(command).__name__} refused: {error}")

    def _tell_events(self) -> None:
        events = self._core.drain_events()
        if not events:
            return
        self._sessions.add_events(events)
        if self._ports.feed is not None:
            self._ports.feed.publish(events, self._core.view_digest, self._core.num_cached_pages)

    def _on_peer(self, key: int, command: PeerJoined | PeerLeft) -> None:
        """Who is there is the word of each router; who left has left for all."""
        match command:
            case PeerJoined(info):
                self._sessions.introduce(key, info.id, info.incarnation)
            case PeerLeft(worker_id, incarnation):
                self._sessions.forget_peer(worker_id, incarnation)

    def _depart(self, grace_s: float, now: float) -> None:
        self._departure.ask(grace_s, now)
        self.load_due_s = now  # routers learn it at once

    def _report_load(self, now: float) -> None:
        fault = self._core.page_fault()
        if fault and fault != self._page_fault:
            self._num_page_faults += 1
            self._ports.warn(f"page ledger: {fault}")
        self._page_fault = fault
        load = replace(self._core.load(now), draining=self._departure.asked, num_page_faults=self._num_page_faults)
        self._sessions.add_load(load)
        routers, peers = len(self._sessions.keys), self._sessions.live_peers()
        for observer in self._ports.observers:
            observer.loaded(load)
            observer.connected(routers, peers)

    def _perform(self, effects: Sequence[Word | C], now: float) -> None:
        for effect in effects:
            if isinstance(effect, PeerStatus):
                self._sessions.add_peer(effect)
            elif isinstance(effect, RequestWord):
                for observer in self._ports.observers:
                    observer.said(effect, now)
                self._sessions.add(effect)
            else:
                self._ports.submit(effect)
