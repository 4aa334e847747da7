"""A router core among fake workers in virtual time: delays, lost sessions, hangs, deaths and returns, from one seed."""

from array import array
from collections import deque
from dataclasses import asdict, dataclass, field
from random import Random

from engine.core.errors import BatonError
from engine.core.messages import Command, Frame
from engine.core.types import FinishReason, Sampling, WorkerInfo
from router.api import Delta, GenerateCall
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
from tests.fakes.workers import STOP_TOKEN, FakeFaults, FakeWorker, answer, logprob_of, worker_info

STEP_S = 0.01


@dataclass
class Client:
    """What one client asked for and has been given."""

    call: GenerateCall
    sent_s: float
    expected: list[int]
    tokens: list[int] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    error: BatonError | None = None
    cancelled: bool = False
    ended_s: float | None = None

    def take(self, delta: Delta, now: float) -> None:
        """One more delta: the right tokens, and nothing after the end."""
        assert self.ended_s is None and not self.cancelled, "a delta after the end"
        self.tokens += delta.tokens
        assert self.tokens == self.expected[: len(self.tokens)], "wrong tokens"
        if self.call.sampling.num_logprobs is not None:
            assert delta.logprobs == tuple(map(logprob_of, delta.tokens))
        assert (delta.cached_tokens is not None) == (not self.deltas), "cached_tokens is for the first delta"
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.ended_s = now
            self._check_end(delta)

    def _check_end(self, last: Delta) -> None:
        assert self.tokens == self.expected
        stopped = self.tokens[-1] in self.call.sampling.stop_token_ids
        assert last.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert last.stop_token == (self.tokens[-1] if stopped else None)
        assert last.timing is not None and last.timing.decode_worker

    def fail(self, error: BatonError, now: float) -> None:
        """The call ended badly."""
        assert self.ended_s is None and not self.cancelled, "an error after the end"
        self.error, self.ended_s = error, now


@dataclass(frozen=True)
class Rights:
    """What a call has of its tenant."""

    tenant: str = ""
    priority: int = 0
    weight: float = 1.0
    ttft_slo_s: float | None = None


class Session:
    """The stream between the router and one incarnation; in order, with delay, lost as a whole."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.up: deque[tuple[float, Frame]] = deque()
        self.down: deque[tuple[float, Command]] = deque()
        self.open = True
        self.hung_until_s = 0.0


class RouterWorld:
    """Drive with `run`; every event is followed by an integrity check."""

    def __init__(
        self, seed: int, policy: str = "cost", config: RouterConfig | None = None, faults: FakeFaults | None = None
    ) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.core = RouterCore(
            config or RouterConfig(),
            Random(self.rng.getrandbits(32)),
            lambda model, rng: make_policy(policy, model, rng),
        )
        self.faults = faults or FakeFaults()
        self.sessions: dict[str, Session] = {}
        self.clients: dict[int, Client] = {}
        self.rejoin: list[tuple[float, WorkerInfo, FakeWorker | None]] = []
        """(when, who, the process when it is the old one) of sessions that will open."""

    # -------------------------------------------------------------------------------------------------- workers

    def add_worker(self, info: WorkerInfo, worker: FakeWorker | None = None) -> FakeWorker:
        """Open a session, with a new process unless `worker` is given."""
        worker = worker or FakeWorker(info, Random(self.rng.getrandbits(32)), self.find, self.faults)
        self.sessions[worker.key] = Session(worker)
        self.handle(WorkerJoined(info))
        return worker

    def find(self, key: str) -> FakeWorker | None:
        """Another worker, as one that pulls from it sees it: a hung or dead one does not answer."""
        session = self.sessions.get(key)
        return session.worker if session and session.hung_until_s <= self.now else None

    def hang(self, key: str, for_s: float) -> None:
        """Stop the process for a while; its session stays open."""
        self.sessions[key].hung_until_s = self.now + for_s

    def lose_session(self, key: str, back_in_s: float | None, dead: bool) -> None:
        """The stream breaks; the worker (or a new incarnation, when it is dead) comes back after a while, or never."""
        session = self.sessions.pop(key)
        session.worker.end_session()
        info = session.worker.info
        if back_in_s is not None:
            if dead:
                roles, layout = info.roles, info.layout
                info = worker_info(info.id, info.incarnation + 1, roles, layout.page_size, info.num_pages)
            self.rejoin.append((self.now + back_in_s, info, None if dead else session.worker))
        self.handle(WorkerGone(key, "lost"))

    # -------------------------------------------------------------------------------------------------- clients

    def call(
        self, key: int, prompt: list[int], timeout_s: float = 30.0, rights: Rights | None = None, **sampling: object
    ) -> Client:
        """A client sends a call."""
        settings = Sampling(**{"seed": key, "stop_token_ids": (STOP_TOKEN,), **sampling})  # type: ignore[arg-type]
        tokens = array("i", prompt)
        call = GenerateCall(f"call-{key}", tokens, settings, timeout_s, **asdict(rights or Rights()))
        client = self.clients[key] = Client(call, self.now, answer(tokens, settings))
        self.handle(CallArrived(key, call))
        return client

    def cancel(self, key: int) -> None:
        """The client goes away."""
        self.clients[key].cancelled = True
        self.handle(CallCancelled(key))

    @property
    def waiting(self) -> list[Client]:
        """Clients without an outcome."""
        return [client for client in self.clients.values() if client.ended_s is None and not client.cancelled]

    # ----------------------------------------------------------------------------------------------------- time

    def handle(self, event: Event) -> None:
        """One event, what follows from it, and the check that nothing is lost."""
        effects = self.core.handle(event, self.now)
        self.core.check_integrity()
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        """Do what the core wants done."""
        match effect:
            case Send(key, command):
                session = self.sessions.get(key)
                if session:
                    session.down.append((self.now + self.rng.random() * 0.02, command))
            case Emit(key, delta):
                self.clients[key].take(delta, self.now)
            case Fail(key, error):
                self.clients[key].fail(error, self.now)

    def step(self) -> None:
        """Ten milliseconds pass."""
        self.now += STEP_S
        for entry in [entry for entry in self.rejoin if entry[0] <= self.now]:
            self.rejoin.remove(entry)
            self.add_worker(entry[1], entry[2])
        sessions = list(self.sessions.values())
        self.rng.shuffle(sessions)
        for session in sessions:
            self._step_worker(session)
        self.rng.shuffle(sessions)
        for session in sessions:
            while session.up and session.up[0][0] <= self.now:
                if self.sessions.get(session.worker.key) is session:
                    self.handle(FrameArrived(session.worker.key, session.up[0][1]))
                session.up.popleft()
        if round(self.now / STEP_S) % 5 == 0:
            self.handle(Tick())

    def _step_worker(self, session: Session) -> None:
        if session.hung_until_s > self.now:
            return
        while session.down and session.down[0][0] <= self.now:
            session.worker.on_command(session.down.popleft()[1])
        session.up.append((self.now + self.rng.random() * 0.02, session.worker.step(self.now)))

    def run(self, until_s: float) -> None:
        """Let time pass until `until_s`, or until every client has an outcome."""
        while self.now < until_s and self.waiting:
            self.step()

    def settle(self, for_s: float = 1.0) -> None:
        """Let everything arrive, then check that nothing of any call is left anywhere."""
        end = self.now + for_s
        while self.now < end:
            self.step()
        assert not self.core.calls.flows and not self.core.calls.by_attempt
        for session in self.sessions.values():
            worker = session.worker
            assert worker.idle, f"{worker.key} keeps {worker.rows} {worker.adoptions} {worker.leases}"
            assert not self.core.view.workers[worker.key].legs
