"""A whole service in virtual time: the production router core, its sessions, workers, and clients that check."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.core.messages import Adopt, Adopted, Frame, HandoffFailed
from engine.server.role import RequestWord
from kv_transfer.transports.fake import FakeNetwork
from router.api import GenerateCall
from router.config import RouterConfig
from router.core import RouterCore
from router.events import (
    CallArrived,
    CallCancelled,
    Effect,
    Emit,
    Event,
    Fail,
    FrameArrived,
    Send,
    Tick,
    WorkerGone,
    WorkerJoined,
)
from router.policies.registry import make_policy
from simulator.chance import Chance
from simulator.client import SimClient, make_client
from simulator.clock import Clock
from simulator.session import SimSession
from simulator.worker import SimWorker, Surroundings, WorkerSpec

TICK_S = 0.05
"""Of the router, as in router.service."""
DETECT_S = 0.05
"""How long a dead process goes unnoticed by those who read from it."""


@dataclass(slots=True)
class Hooks:
    """Where faults may strike."""

    adopt: Callable[[Adopt], Adopt] = lambda command: command
    """What becomes of an Adopt on its way."""
    said: Callable[[SimWorker, RequestWord], None] = lambda worker, word: None
    left: Callable[[WorkerSpec], None] = lambda spec: None
    """A worker has drained."""


@dataclass(slots=True)
class Tally:
    """What is counted on the way. Mutable."""

    handoff_failures: Counter[str] = field(default_factory=Counter)
    """By cause."""
    reading_handoffs: int = 0
    """Of those that were proven, the ones that read at least one page."""
    pages_read: int = 0
    dead_wrong_reads: int = 0
    """Tokens drawn from wrong pages by workers that are gone."""
    struck_s: float = float("inf")
    """When something went wrong first."""


class World:
    """Events are the clock's; what a seed decides comes from `chance`."""

    def __init__(self, chance: Chance, policy: str, config: RouterConfig) -> None:
        self.clock = Clock()
        self.chance = chance
        self.router = RouterCore(config, chance.source, lambda model, rng: make_policy(policy, model, rng))
        self.network = FakeNetwork(self._read_delay_s, DETECT_S, cancels=chance.happens(0.5))
        self.slow = chance.pick((0.02, 0.1, 0.3))
        """How often a read, or a frame, takes long."""
        self.blocked: dict[tuple[str, str], float] = {}
        """(reader, source) worker keys -> until when no byte gets through between them."""
        self.workers: dict[str, SimWorker] = {}
        """By worker id, the living incarnations."""
        self.sessions: dict[str, SimSession] = {}
        """By worker key, those that the router holds for open."""
        self.clients: dict[int, SimClient] = {}
        self.hooks = Hooks()
        self.tally = Tally()
        self._incarnations: Counter[str] = Counter()
        self._num_sessions = 0
        self._landings_s: set[float] = set()
        """When the clock will look at the network."""
        self._around = Surroundings(
            self.clock, self.network, chance, self._deliver, self._advance_network, self._said, self._left
        )
        self.clock.after(TICK_S, self._tick)

    # ------------------------------------------------------------ workers

    def start(self, spec: WorkerSpec) -> SimWorker:
        """A new process; the router finds it."""
        self._incarnations[spec.id] += 1
        worker = self.workers[spec.id] = SimWorker(spec, self._incarnations[spec.id], self._around)
        self.connect(worker)
        return worker

    def kill(self, worker: SimWorker, router_hears_in_s: float) -> None:
        """The process is gone."""
        worker.kill()
        del self.workers[worker.spec.id]
        self.tally.dead_wrong_reads += worker.engine.num_wrong_reads
        self.lose_session(worker, router_hears_in_s, 0.0)

    def _left(self, worker: SimWorker) -> None:
        self.kill(worker, 0.001)
        self.hooks.left(worker.spec)

    def connect(self, worker: SimWorker) -> None:
        """Open a session with a living worker that has none."""
        if not worker.alive or worker.key in self.sessions:
            return
        self._num_sessions += 1
        self.sessions[worker.key] = SimSession(self._num_sessions, worker, self.clock, self.chance, self.slow)
        self.handle(WorkerJoined(worker.info))

    def lose_session(self, worker: SimWorker, router_hears_in_s: float, worker_hears_in_s: float) -> None:
        """The stream breaks. The router hears of it first, or the worker."""
        session = self.sessions.get(worker.key)
        if session is None or not session.open:
            return
        session.lose(worker_hears_in_s)
        self.clock.after(router_hears_in_s, lambda: self._gone(session))

    def _gone(self, session: SimSession) -> None:
        worker = session.worker
        del self.sessions[worker.key]
        self.handle(WorkerGone(worker.key, "the stream broke"))
        if worker.alive:
            self.clock.after(self.chance.between(0.1, 0.3), lambda: self.connect(worker))

    # ------------------------------------------------------------ clients

    def call(self, key: int, call: GenerateCall) -> None:
        """A client sends a call."""
        self.clients[key] = make_client(call, self.clock.now)
        self.handle(CallArrived(key, call))

    def cancel(self, key: int) -> None:
        """The client goes away, if it still waits."""
        client = self.clients.get(key)
        if client is not None and client.waits:
            client.cancelled = True
            self.handle(CallCancelled(key))

    @property
    def num_wrong_reads(self) -> int:
        """Tokens drawn from wrong pages, by workers that live and that died."""
        return self.tally.dead_wrong_reads + sum(worker.engine.num_wrong_reads for worker in self.workers.values())

    @property
    def num_waiting(self) -> int:
        """Clients without an outcome."""
        return sum(client.waits for client in self.clients.values())

    @property
    def quiet(self) -> bool:
        """Nobody keeps anything of a call, no read is on its way, and every process runs."""
        return self.network.next_s == float("inf") and not any(
            worker.stopped or worker.num_held_pages or worker.num_open for worker in self.workers.values()
        )

    # ------------------------------------------------------------ the router

    def handle(self, event: Event) -> None:
        """One event at the router, and all that follows from it."""
        for effect in self.router.handle(event, self.clock.now):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(key, command):
                session = self.sessions.get(key)
                if session is not None:
                    session.send(self.hooks.adopt(command) if isinstance(command, Adopt) else command)
            case Emit(key, delta):
                self.clock.note(key, *delta.tokens)
                self.clients[key].take(delta, self.clock.now)
            case Fail(key, error):
                self.clock.note(-key)
                self.clients[key].fail(error, self.clock.now)

    def _deliver(self, worker: SimWorker, session_key: int, frame: Frame) -> None:
        session = self.sessions.get(worker.key)
        if session is not None and session.key == session_key and session.open:
            session.deliver(frame, lambda heard: self._hear(worker.key, heard))

    def _hear(self, key: str, frame: Frame) -> None:
        self.handle(FrameArrived(key, frame))

    def _tick(self) -> None:
        self.handle(Tick())
        self.clock.after(TICK_S, self._tick)

    def _said(self, worker: SimWorker, word: RequestWord) -> None:
        if isinstance(word, HandoffFailed):
            self.tally.handoff_failures[word.message.partition(":")[0]] += 1
        elif isinstance(word, Adopted) and word.pulled_pages:
            self.tally.reading_handoffs += 1
            self.tally.pages_read += word.pulled_pages
        self.hooks.said(worker, word)

    # ------------------------------------------------------------ the network between workers

    def _read_delay_s(self, reader: str, source: str, num_pages: int) -> float:
        delay_s = self.chance.delay_s(0.0005 + 0.0001 * num_pages, 0.1, self.slow)
        if self.chance.happens(self.slow / 20):
            delay_s = self.chance.between(0.3, 1.5)  # long after whoever waited for it has given up
        return max(self.blocked.get((reader, source), 0.0) - self.clock.now, 0.0) + delay_s

    def _advance_network(self) -> None:
        self.network.advance(self.clock.now)
        next_s = self.network.next_s
        if next_s < float("inf") and next_s not in self._landings_s:
            self._landings_s.add(next_s)
            self.clock.at(next_s, lambda: self._land(next_s))

    def _land(self, when_s: float) -> None:
        self._landings_s.remove(when_s)
        self._advance_network()
