"""Workers and one router in virtual time: production cores, dispatch and roles; devices and links only take time.

The simulator's campaign plays every byte to find wrong ones; here nothing goes wrong and an hour of a cluster is to fit
in a minute, so pages have no content, and a transfer is a time.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bench.router_machine import (
    HANDOFF_S,
    LAYOUT,
    LINK_BYTES_PER_S,
    MAX_MODEL_LEN,
    MAX_STEP_TOKENS,
    PAGE_SIZE,
    POOL_PAGES,
    TURN_S,
    WIRE_S,
    ClockExecutor,
)
from engine.core.config import SchedulerConfig
from engine.core.digest import page_keys
from engine.core.engine import EngineCore
from engine.core.messages import Frame, KVEvent, PagesRemoved, PagesStored
from engine.core.types import WorkerInfo, WorkerLoad
from engine.server.dispatch import Dispatch, DispatchPorts
from engine.server.inbox import Event as Word
from engine.server.inbox import Received, SessionOpened
from kv_transfer.api import (
    CancelHandoff,
    JoinPeer,
    OfferTicket,
    OpenHandoff,
    PeerReady,
    Proven,
    Settled,
    TransferCommand,
    TransferOutcome,
)
from kv_transfer.holding import TicketSealer
from kv_transfer.role import WorkerRole
from kv_transfer.ticket import open_ticket
from kv_transfer.transports.base import peer_key
from router.config import RouterConfig
from router.core import RouterCore
from router.events import Emit, Event, Fail, FrameArrived, Send, Tick, WorkerJoined
from router.policies.registry import make_policy
from router.prefix_index import PrefixIndex
from simulator.clock import Clock

KEY = b"the cluster key of the benchmark"
TICK_S = 0.05
"""Of the router, as in router.service."""
SESSION = 1
REPEAT_S = 0.2
"""A worker's gRPC thread says its last load again when the engine thread waits for a long step, as in engine.server."""


class WatchedCore(EngineCore):
    """An engine core whose prefix events somebody else may see before the worker tells them."""

    unseen: list[KVEvent] | None = None
    """What the onlooker has not seen; None: there is none."""
    undrained: list[KVEvent]

    def drain_events(self) -> list[KVEvent]:
        """As before."""
        if self.unseen is None:
            return super().drain_events()
        self._look()
        events, self.undrained = self.undrained, []
        return events

    def watch(self) -> None:
        """From now on `take_unseen` is called."""
        self.unseen, self.undrained = [], []

    def take_unseen(self) -> list[KVEvent]:
        """What changed since the last call, up to this moment."""
        self._look()
        events, self.unseen = self.unseen or [], []
        return events

    def _look(self) -> None:
        assert self.unseen is not None, "watch first"
        new = super().drain_events()
        self.unseen += new
        self.undrained += new


class TrueIndex(PrefixIndex):
    """The oracle: knows at each look-up what every cache holds at that moment, whatever frames are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.cores: dict[int, WatchedCore] = {}
        """By slot."""

    def store(self, slot: int, keys: Iterable[int], head: int | None = None) -> bool:
        """What the worker says is old news."""
        return True

    def remove(self, slot: int, keys: Iterable[int]) -> None:
        """See `store`."""

    def match(self, digests: "tuple[bytes, ...] | list[bytes]") -> dict[int, int]:  # type: ignore[override]
        """After a look into every cache."""
        for slot, core in self.cores.items():
            for event in core.take_unseen():
                if isinstance(event, PagesStored):
                    super().store(slot, page_keys(event.digests))
                elif isinstance(event, PagesRemoved):
                    super().remove(slot, page_keys(event.digests))
        return super().match(digests)

    def clear(self, slot: int) -> None:
        """A snapshot begins: nothing that was not known."""

    def view_digest(self, slot: int) -> None:
        """Ahead of what the worker says: not to be compared."""


@dataclass(slots=True)
class _Handoff:
    """Pages on their way to one worker. Mutable."""

    command: OpenHandoff
    begun_s: float
    pulled: int = 0
    over: bool = False


class TimedTransfers:
    """Stands where the transfer thread stands: pages take the link's time and are always proven."""

    def __init__(self, clock: Clock, done: Callable[[TransferOutcome], None]) -> None:
        self._clock, self._done = clock, done
        self._open: dict[int, _Handoff] = {}
        self._link_free_s = 0.0

    def submit(self, command: TransferCommand) -> None:
        """From the role."""
        match command:
            case JoinPeer(info):
                self._later(HANDOFF_S, PeerReady(info.id, info.incarnation, "virtual", LINK_BYTES_PER_S, ""))
            case OpenHandoff(id):
                self._open[id] = _Handoff(command, self._clock.now)
            case OfferTicket(id, sealed):
                if id in self._open:
                    self._pull(self._open[id], sealed)
            case CancelHandoff(id):
                handoff = self._open.pop(id, None)
                if handoff is not None:
                    handoff.over = True
                    self._done(Settled(id))
            case _:
                pass  # nobody leaves

    def _pull(self, handoff: _Handoff, sealed: bytes) -> None:
        ticket = open_ticket(sealed, KEY)
        first = max(ticket.token_begin // PAGE_SIZE, handoff.command.num_local)
        count = max(0, -(-ticket.token_end // PAGE_SIZE) - first)
        handoff.pulled += count
        start_s = max(self._clock.now, self._link_free_s)
        self._link_free_s = start_s + count * LAYOUT.page_bytes / LINK_BYTES_PER_S
        if ticket.first is None:
            return
        proven = Proven(
            handoff.command.id,
            ticket.first,
            handoff.pulled * LAYOUT.page_bytes,
            self._link_free_s - handoff.begun_s,
            handoff.pulled,
            handoff.command.num_local,
        )

        def land() -> None:
            if not handoff.over:
                del self._open[handoff.command.id]
                self._done(proven)

        self._clock.at(self._link_free_s + HANDOFF_S, land)

    def _later(self, delay_s: float, outcome: TransferOutcome) -> None:
        self._clock.after(delay_s, lambda: self._done(outcome))


class _Voice:
    """What one worker says, and its last load again when it has nothing to say."""

    def __init__(self, clock: Clock, send: Callable[[Frame], None]) -> None:
        self._clock, self._send = clock, send
        self._said_s = 0.0
        self._load: WorkerLoad | None = None
        clock.after(REPEAT_S, self._repeat)

    def say(self, frame: Frame) -> None:
        self._said_s, self._load = self._clock.now, frame.load or self._load
        self._send(frame)

    def _repeat(self) -> None:
        if self._clock.now - self._said_s >= REPEAT_S / 2:
            self.say(Frame(load=self._load))
        self._clock.after(REPEAT_S, self._repeat)


class Worker:
    """One worker: the loop of engine.server.loop, cut where it waits."""

    def __init__(
        self, worker_id: str, roles: tuple[str, ...], clock: Clock, send: Callable[["Worker", Frame], None]
    ) -> None:
        self.info = WorkerInfo(worker_id, 1, roles, worker_id, "model", LAYOUT, POOL_PAGES, MAX_MODEL_LEN)
        self.key = peer_key(worker_id, 1)
        config = SchedulerConfig(PAGE_SIZE, POOL_PAGES, MAX_MODEL_LEN, max_step_tokens=MAX_STEP_TOKENS)
        self.executor = ClockExecutor()
        self.core = WatchedCore(config, self.executor, model_hash=LAYOUT.model_hash)
        self._max_in_flight = config.max_in_flight
        self._transfers = TimedTransfers(clock, self._on_outcome)
        role = WorkerRole(self.core, TicketSealer(worker_id, 1, LAYOUT, KEY))
        ports = DispatchPorts(self._transfers.submit, _refuse)
        self._dispatch: Dispatch[TransferCommand, TransferOutcome] = Dispatch(self.core, role, ports)
        self._clock = clock
        self._voice = _Voice(clock, lambda frame: send(self, frame))
        self._inbox: list[Word] = []
        self._outcomes: list[TransferOutcome] = []
        self._ends: deque[float] = deque()
        """When the device is done with each launched step."""
        self._awake = False
        self._alarm_s = float("inf")

    def post(self, event: Word) -> None:
        """Something for the inbox."""
        self._inbox.append(event)
        self._wake()

    def _on_outcome(self, outcome: TransferOutcome) -> None:
        self._outcomes.append(outcome)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._clock.after(TURN_S, self._turn)

    def _turn(self) -> None:
        now = self._clock.now
        self._awake = False
        events, self._inbox = self._inbox, []
        for event in events:
            self._dispatch.on_event(event, now)
        outcomes, self._outcomes = self._outcomes, []
        for outcome in outcomes:
            self._dispatch.on_outcome(outcome, now)
        if self.core.launch(now):
            self._ends.append(max(self._ends[-1] if self._ends else now, now) + self.executor.step_s)
            if len(self._ends) < self._max_in_flight:
                self._report(now)
                self._wake()
                return
        if self._ends:
            self._flush()
            self._awake = True  # it waits for the device and hears nothing meanwhile
            self._clock.at(self._ends[0], self._commit)
            return
        self._report(now)
        self._sleep(now)

    def _commit(self) -> None:
        self._ends.popleft()
        self._dispatch.on_result(self.core.commit(), self._clock.now)
        self._turn()

    def _report(self, now: float) -> None:
        self._dispatch.on_result(self.core.take_result(), now)
        self._flush()

    def _flush(self) -> None:
        for _, frame in self._dispatch.take_frames():
            self._voice.say(frame)

    def _sleep(self, now: float) -> None:
        if self.core.has_work:
            self._wake()
            return
        wake_s = max(self._dispatch.load_due_s, now)
        if self._alarm_s > wake_s or self._alarm_s <= now:
            self._alarm_s = wake_s
            self._clock.at(wake_s, self._wake)


def _refuse(message: str) -> None:
    raise AssertionError(f"a worker warned although nothing goes wrong here: {message}")


@dataclass(slots=True)
class Ports:
    """Who hears what comes out of the router. Mutable: set once by whoever sends the calls."""

    emit: Callable[[Emit], None] = field(default=lambda effect: None)
    fail: Callable[[Fail], None] = field(default=lambda effect: None)


class Cluster:
    """`num_workers` workers, half for prompts and half for decoding, and a router with one policy."""

    def __init__(self, num_workers: int, policy: str, seed: int, oracle: bool) -> None:
        self.clock = Clock()
        self.ports = Ports()
        rng = random.Random(seed)
        self.router = RouterCore(RouterConfig(), rng, lambda model, rng: make_policy(policy, model, rng))
        true_index = TrueIndex()
        if oracle:
            self.router.view.index = true_index
        roles = [("prefill",), ("decode",)]
        self.workers = [Worker(f"w{n}", roles[n % 2], self.clock, self._up) for n in range(num_workers)]
        self._by_key = {worker.key: worker for worker in self.workers}
        for worker in self.workers:
            worker.post(SessionOpened(SESSION))
            self.handle(WorkerJoined(worker.info))
            if oracle:
                worker.core.watch()
                true_index.cores[self.router.view.workers[worker.key].slot] = worker.core
        self.clock.after(TICK_S, self._tick)

    def handle(self, event: Event) -> None:
        """One event at the router, and all that follows from it."""
        for effect in self.router.handle(event, self.clock.now):
            match effect:
                case Send(key, command):
                    received = Received(SESSION, command)
                    worker = self._by_key[key]
                    self.clock.after(WIRE_S, lambda worker=worker, received=received: worker.post(received))  # type: ignore[misc]
                case Emit():
                    self.ports.emit(effect)
                case Fail():
                    self.ports.fail(effect)

    def _up(self, worker: Worker, frame: Frame) -> None:
        self.clock.after(WIRE_S, lambda: self.handle(FrameArrived(worker.key, frame)))

    def _tick(self) -> None:
        self.handle(Tick())
        self.clock.after(TICK_S, self._tick)
