"""One incarnation of a worker in virtual time: production core, role, dispatch and transfer core; hashes for KV.

Two threads are played, as in production: the engine thread, which waits for the device while a step runs and hears
nothing meanwhile, and the transfer thread, which is woken by what lands and by time.
"""

from collections import deque
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import cast

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.messages import Frame, PeerStatus
from engine.core.types import KVLayout, Request, StepPlan, WorkerInfo, WorkerLoad
from engine.server.dispatch import Dispatch, DispatchPorts
from engine.server.inbox import Event
from engine.server.role import RequestWord
from kv_transfer.api import TransferCommand, TransferOutcome
from kv_transfer.core import TransferCore
from kv_transfer.holding import TicketSealer
from kv_transfer.host_pool import HostPool
from kv_transfer.peer import PeerConfig
from kv_transfer.role import WorkerRole
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.fake import FakeNetwork, FakeTransport
from simulator.chance import Chance
from simulator.clock import Clock
from simulator.executor import HashExecutor

CLUSTER_KEY = b"the cluster key of the simulator"
MAX_MODEL_LEN = 64
HELD_STATES = ("leased", "reserved", "filling", "quarantined")
TICK_S = 0.01
"""Of the transfer thread, as in kv_transfer.manager."""
WHOLE_CHECK_EVERY = 4
"""Each step is followed by the count of pages; so many, and the end of a worker, by the whole truth, recomputed."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What stays the same when a worker is started again."""

    id: str
    roles: tuple[str, ...]
    page_size: int
    num_pages: int
    max_step_tokens: int
    max_rows: int
    clock_offset_s: float
    """No two workers' clocks agree."""

    @property
    def layout(self) -> KVLayout:
        """One signed 64-bit integer a slot for K, one for V."""
        return KVLayout("model", num_layers=1, num_kv_heads=1, head_dim=2, page_size=self.page_size, dtype="float32")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker lives in."""

    clock: Clock
    network: FakeNetwork
    chance: Chance
    deliver: Callable[["SimWorker", int, Frame], None]
    """A frame for a session."""
    advance_network: Callable[[], None]
    """Bring the network to the clock's time. Before it is used, so that what is due lands, and after, so that it wakes
    when the next thing lands."""
    said: Callable[["SimWorker", RequestWord], None]
    left: Callable[["SimWorker"], None]
    """That worker has drained, or its time to drain is over: its process ends."""


class SimWorker:
    """Alive until `kill`; `stop` and `resume` are SIGSTOP and SIGCONT."""

    def __init__(self, spec: WorkerSpec, incarnation: int, around: Surroundings) -> None:
        layout = spec.layout
        self.spec = spec
        self.key = peer_key(spec.id, incarnation)
        self.pool = HostPool(layout, spec.num_pages)
        self.transport = FakeTransport(around.network, self.key, self.pool, lambda: self.transfers.wake())
        transports = ((self.transport.name, b""),)
        self.info = WorkerInfo(
            spec.id, incarnation, spec.roles, self.key, "model", layout, spec.num_pages, MAX_MODEL_LEN, transports
        )
        self.engine = EngineThread(self, spec, around)
        self.transfers = TransferThread(self, around)
        self.alive = True
        self.stopped = False
        self._around = around
        self._missed: list[Callable[[], None]] = []

    @property
    def num_held_pages(self) -> int:
        """Pages that are neither free nor just cached."""
        states = self.engine.core.pages_by_state()
        return sum(states[state] for state in HELD_STATES)

    @property
    def num_open(self) -> int:
        """Requests and handoffs that are not over here."""
        return self.engine.dispatch.num_requests + self.transfers.core.num_handoffs

    def time(self) -> float:
        """This worker's own clock."""
        return self._around.clock.now + self.spec.clock_offset_s

    def kill(self) -> None:
        """SIGKILL."""
        self.engine.core.check_integrity()
        self._around.advance_network()
        self.alive = False
        self._around.network.kill(self.key)
        self._around.advance_network()

    def stop(self) -> None:
        """SIGSTOP: nothing runs; what others read from here hangs."""
        self._around.advance_network()
        self.stopped = True
        self._around.network.stop(self.key)

    def resume(self) -> None:
        """SIGCONT: what was due meanwhile runs now."""
        if not self.alive:
            return
        self._around.advance_network()
        self.stopped = False
        self._around.network.resume(self.key)
        self._around.advance_network()
        missed, self._missed = self._missed, []
        for action in missed:
            action()

    def later(self, when_s: float, action: Callable[[], None]) -> None:
        """Run `action` at that time if the process runs then; when it is stopped, as soon as it goes on."""

        def run() -> None:
            if not self.alive:
                return
            if self.stopped:
                self._missed.append(run)
            else:
                action()

        self._around.clock.at(when_s, run)


class EngineThread:
    """The loop of engine.server.loop, cut where it waits."""

    def __init__(self, worker: SimWorker, spec: WorkerSpec, around: Surroundings) -> None:
        self._worker, self._around = worker, around
        self._config = SchedulerConfig(
            spec.page_size,
            spec.num_pages,
            MAX_MODEL_LEN,
            max_step_tokens=spec.max_step_tokens,
            max_rows=spec.max_rows,
            max_in_flight=around.chance.whole(1, 2),
        )
        # A memoryview is a mutable sequence in all but name.
        pages = cast(list[MutableSequence[int]], [worker.pool.read(p, 0, 1).cast("q") for p in range(spec.num_pages)])
        size = spec.page_size
        keys, values = [page[:size] for page in pages], [page[size:] for page in pages]
        self._executor = _TimedExecutor(
            size, keys, spec.max_rows, spec.max_step_tokens, lambda: around.chance.happens(0.5), values
        )
        layout = spec.layout
        generations = cast(MutableSequence[int], worker.pool.generations[: spec.num_pages])
        self.core = EngineCore(self._config, self._executor, model_hash=layout.model_hash, generations=generations)
        sealer = TicketSealer(spec.id, worker.info.incarnation, layout, CLUSTER_KEY)
        ports = DispatchPorts(self._submit, _ignore, (_Listener(worker, around),))
        role = WorkerRole(self.core, sealer)
        self.dispatch: Dispatch[TransferCommand, TransferOutcome] = Dispatch(self.core, role, ports)
        self.outcomes: list[TransferOutcome] = []
        self._inbox: list[Event] = []
        self._ends: deque[float] = deque()
        """When the device is done with each launched step."""
        self._awake = False
        """A turn is under way or scheduled, or the thread waits for the device: it need not be woken."""
        self._alarm_s = float("inf")
        self._num_steps = 0

    @property
    def num_wrong_reads(self) -> int:
        """Tokens drawn from wrong pages."""
        return self._executor.num_wrong

    def post(self, event: Event) -> None:
        """Something for the inbox."""
        self._inbox.append(event)
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        if not self._awake:
            self._awake = True
            self._go_on()

    # ------------------------------------------------------------ inside

    def _go_on(self) -> None:
        self._worker.later(self._around.clock.now + 30e-6, self._turn)

    def _submit(self, command: TransferCommand) -> None:
        self._worker.transfers.submit(command)

    def _turn(self) -> None:
        now = self._worker.time()
        events, self._inbox = self._inbox, []
        outcomes, self.outcomes = self.outcomes, []
        for event in events:
            self.dispatch.on_event(event, now)
        for outcome in outcomes:
            self.dispatch.on_outcome(outcome, now)
        if events or outcomes:
            self._flush()
        if self.core.launch(now):
            begin_s = self._ends[-1] if self._ends else self._around.clock.now
            self._ends.append(max(begin_s, self._around.clock.now) + self._step_s())
            if len(self._ends) < self._config.max_in_flight:
                self._report(now)
                self._go_on()
                return
        if self._ends:
            self._worker.later(self._ends[0], self._commit)
            return
        self._report(now)
        self._sleep(now)

    def _commit(self) -> None:
        now = self._worker.time()
        self._ends.popleft()
        self._report(now, commit=True)
        if self._worker.alive:
            self._turn()

    def _report(self, now: float, commit: bool = False) -> None:
        self.dispatch.on_result(self.core.commit() if commit else self.core.take_result(), now)
        if commit:
            self._check()
        self._flush()
        if self.dispatch.may_exit(now):
            self._around.left(self._worker)

    def _check(self) -> None:
        fault = self.core.page_fault()
        assert not fault, fault
        self._num_steps += 1
        if self._num_steps % WHOLE_CHECK_EVERY == 0:
            self.core.check_integrity()

    def _flush(self) -> None:
        for session, frame in self.dispatch.take_frames():
            self._around.deliver(self._worker, session, frame)

    def _step_s(self) -> float:
        chance = self._around.chance
        return chance.delay_s(0.0005 + 0.0001 * self._executor.num_tokens, 0.05, 0.01)

    def _sleep(self, now: float) -> None:
        """Until the next load report or deadline, unless something comes before."""
        if self.core.has_work or self._inbox or self.outcomes:
            self._go_on()
            return
        self._awake = False
        deadline_s = self.core.next_deadline_s()
        wake_s = self.dispatch.load_due_s if deadline_s is None else min(self.dispatch.load_due_s, deadline_s)
        wake_s = max(wake_s, now)
        if self._alarm_s > wake_s or self._alarm_s <= now:
            self._alarm_s = wake_s
            self._worker.later(wake_s - self._worker.spec.clock_offset_s, self._alarm)

    def _alarm(self) -> None:
        self.wake()


class TransferThread:
    """The loop of kv_transfer.manager, cut where it waits."""

    def __init__(self, worker: SimWorker, around: Surroundings) -> None:
        self._worker, self._around = worker, around
        min_posted_bytes = around.chance.pick((128, 512, 1 << 20))  # one page at once, some, or all
        config = PeerConfig(timed_bytes=256, min_posted_bytes=min_posted_bytes, posted_s=0.0)
        self.core = TransferCore(worker.pool, [worker.transport], worker.key, CLUSTER_KEY, config)
        self._inbox: deque[TransferCommand] = deque()
        self._awake = False
        self._ticking = False

    def submit(self, command: TransferCommand) -> None:
        """From the engine thread."""
        self._inbox.append(command)
        self.wake()

    def wake(self) -> None:
        """A command came, or something landed."""
        if not self._awake:
            self._awake = True
            delay_s = self._around.chance.delay_s(50e-6, 0.003, 0.05)
            self._worker.later(self._around.clock.now + delay_s, self._turn)

    def _turn(self) -> None:
        now = self._worker.time()
        self._awake = False
        self._around.advance_network()
        while self._inbox:
            self.core.handle(self._inbox.popleft(), now)
        self.core.poll(now)
        self._publish()

    def _tick(self) -> None:
        self._ticking = False
        self._around.advance_network()
        self.core.tick(self._worker.time())
        self._publish()

    def _publish(self) -> None:
        outcomes = self.core.take_outcomes()
        if outcomes:
            self._worker.engine.outcomes += outcomes
            self._worker.engine.wake()
        if not self.core.idle and not self._ticking:
            self._ticking = True
            self._worker.later(self._around.clock.now + TICK_S, self._tick)
        self._around.advance_network()


class _TimedExecutor(HashExecutor):
    """Remembers how large the last step was."""

    num_tokens = 0

    def launch(self, plan: StepPlan) -> None:
        self.num_tokens = plan.num_tokens
        super().launch(plan)


class _Listener:
    """The engine.server.dispatch.Observer of one worker."""

    def __init__(self, worker: SimWorker, around: Surroundings) -> None:
        self._worker, self._around = worker, around

    def submitted(self, request: Request) -> None:
        """Nothing to count."""

    def said(self, word: RequestWord, now: float) -> None:
        """What it says of a request is a moment at which faults like to strike."""
        self._around.said(self._worker, word)

    def stepped(self, num_rows: int, wall_s: float) -> None:
        """Nothing to count."""

    def loaded(self, load: WorkerLoad) -> None:
        """Nothing to count."""

    def connected(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """Nothing to count."""


def _ignore(message: str) -> None:
    """What a router did wrong is no concern here: sessions that overlap may name old requests."""
