"""The router as a pure function of time: `handle(event, now)` changes the state and returns what is to be done."""

from collections.abc import Callable

from engine.core.messages import Frame, PeerJoined, PeerLeft, SendPrefixes
from engine.core.types import WorkerInfo
from router.admission import Admission
from router.api import GenerateCall
from router.calls import CallTable
from router.chance import RandomSource
from router.config import RouterConfig
from router.cost_model import CostModel
from router.events import (
    AskFeed,
    CallArrived,
    CallCancelled,
    Effect,
    Event,
    FeedBatch,
    FeedReplayed,
    FeedState,
    FrameArrived,
    LeaveFeed,
    ModelsAllowed,
    Send,
    Tick,
    WorkerDraining,
    WorkerGone,
    WorkerJoined,
)
from router.flow import Flow
from router.frames import FrameReader
from router.hedging import Hedging
from router.intake import Intake
from router.policies.base import Policy
from router.prompt import cache_salt
from router.stats import RouterStats
from router.supervisor import Cause, Chooser, Failure, Supervisor
from router.view import ClusterView
from router.window import DispatchWindow
from router.worker import Health, WorkerState


class RouterCore:
    """Owns nothing but its parts: the view of the cluster, the calls, and the supervisor that acts on both.

    Effects are in order; those for one worker must reach it in that order, those for one call its client.
    """

    def __init__(
        self, config: RouterConfig, rng: RandomSource, policy: Callable[[CostModel, RandomSource], Policy]
    ) -> None:
        """`policy` makes the routing rule from the cost model that this core feeds."""
        self._config = config
        self.view = ClusterView(config.health)
        self.calls = CallTable()
        self.admission = Admission(config.admission)
        self.model = CostModel()
        self.stats = RouterStats()
        self._departed: dict[str, tuple[WorkerInfo, float]] = {}
        """Workers whose session is over but whose peers have not been told to forget them, and when they will be.
        Another router may still reach them, and their transfers may be fine: nothing is broken off early.
        """
        self._effects: list[Effect] = []
        self.hedging = Hedging(config.hedge)
        chooser = Chooser(policy(self.model, rng), self.view, self.model, rng, self.hedging)
        window = DispatchWindow(self.view, self.model, config.admission.max_worker_queue_s)
        intake = Intake(self.admission, window, self.model)
        self._supervisor = Supervisor(self.calls, chooser, intake, config.retry, self.stats, self._effects)
        self._frames = FrameReader(self.calls, self.view, self._supervisor, self.model, self.stats, self._effects)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What is to be done after `event` at `now` (seconds on any clock that never goes back).

        Raises Incompatible for a worker of another model, which then has not joined.
        """
        match event:
            case FrameArrived(worker, frame):
                self._on_frame(worker, frame, now)
            case Tick():
                self._on_tick(now)
            case CallArrived(key, call):
                self._on_call(key, call, now)
            case CallCancelled(key):
                self._on_cancelled(key, now)
            case WorkerJoined(info):
                self._on_joined(info, now)
            case WorkerGone(worker, message, dead):
                self._on_gone(worker, message, now, dead=dead)
            case FeedBatch() | FeedState() | FeedReplayed():
                self._on_feed(event, now)
            case WorkerDraining(worker):
                self._on_draining(worker, now)
            case ModelsAllowed(models):
                self.view.models = models
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def _on_call(self, key: int, call: GenerateCall, now: float) -> None:
        assert key not in self.calls.flows, "the shell names each call once"
        self._supervisor.arrive(Flow(key, call, cache_salt(call.tenant, self._config.salt_key), now), now)

    def _on_cancelled(self, key: int, now: float) -> None:
        if flow := self.calls.flows.get(key):
            self._supervisor.cancel(flow, now)

    # ------------------------------------------------------------------------------------------------- workers

    def _on_draining(self, key: str, now: float) -> None:
        if worker := self.view.workers.get(key):
            worker.draining = True
            self._supervisor.move_from(worker, now)

    def _on_frame(self, key: str, frame: Frame, now: float) -> None:
        worker = self.view.workers.get(key)
        if worker is None:
            return
        returned = worker.health is Health.HUNG
        self.view.heard(worker, now)
        self._frames.read(worker, frame, now)
        if returned:
            self._supervisor.retry_now(now)
        self._supervisor.on_report(worker, now)

    def _on_joined(self, info: WorkerInfo, now: float) -> None:
        self.view.check_model(info)
        for old in self.view.find(info.id):
            self._on_gone(old.key, "it joined again", now)
        for key, (gone, _) in list(self._departed.items()):
            if gone.id == info.id:
                self._forget_peer(key, tell=gone.incarnation != info.incarnation)
        public_feed = self._config.public_feeds and "kv_events" in dict(info.topology)
        worker = self.view.join(info, now, public_feed=public_feed)
        for other in self.view:
            if other is not worker:
                self._introduce(worker, to=other)
                self._introduce(other, to=worker)
        self._ask_for_prefixes(worker, now)
        self._supervisor.retry_now(now)

    def _introduce(self, worker: WorkerState, to: WorkerState) -> None:
        """Any worker can be the source of pages; who is not there to decode takes over none."""
        if to.has_role("decode"):
            self._effects.append(Send(to.key, PeerJoined(worker.info)))

    def _on_gone(self, key: str, message: str, now: float, dead: bool = False) -> None:
        worker = self.view.workers.get(key)
        if worker is None:
            if dead and key in self._departed:
                self._forget_peer(key)
            return
        self.stats.workers_lost += 1
        worker.draining = True
        self._fail_legs(worker, Cause.WORKER_LOST, message, now)
        self.view.leave(key)
        self.model.forget_worker(key)
        self._departed[key] = (worker.info, now + self._config.health.peers_keep_s)
        if dead:
            self._forget_peer(key)

    def _forget_peer(self, key: str, tell: bool = True) -> None:
        """A worker that left will not come back as the same incarnation (or is back, and nobody needs to be told)."""
        info, _ = self._departed.pop(key)
        if tell:
            self.view.forget_source(key)
            self._effects.extend(Send(other.key, PeerLeft(info.id, info.incarnation)) for other in self.view)

    def _fail_legs(self, worker: WorkerState, cause: Cause, message: str, now: float) -> None:
        """Every attempt with a leg there is over. A worker that is gone is told nothing, a hung one to end them."""
        for id in list(worker.legs):
            flow = self.calls.by_attempt.get(id)
            attempt = flow.attempt_of(id) if flow else None
            if flow is None or attempt is None:
                continue
            leg = attempt.leg_on(worker.key)
            if leg is not None and cause is Cause.WORKER_LOST:
                leg.ended()
            self._supervisor.leg_failed(flow, attempt, Failure(cause, worker, message), now)

    def _ask_for_prefixes(self, worker: WorkerState, now: float) -> None:
        feed = self.view.feeds[worker.key]
        if feed.is_public and feed.unsynced_s(now) > self._config.feed_patience_s:
            feed.use_session()
            self._effects.append(LeaveFeed(worker.key))
        ask = feed.next_ask(now)
        if ask is not None:
            self._effects.append(AskFeed(worker.key, ask) if feed.is_public else Send(worker.key, SendPrefixes()))

    def _on_feed(self, word: FeedBatch | FeedState | FeedReplayed, now: float) -> None:
        """From a public feed. One that was left has nothing to say any more."""
        feed = self.view.feeds.get(word.worker)
        if feed is None or not feed.is_public:
            return
        match word:
            case FeedBatch(_, seq, events):
                feed.apply(seq, events)
            case FeedState(_, incarnation, seq, view_digest):
                feed.met(incarnation)
                if seq is not None:
                    feed.report(view_digest, seq, now)
            case FeedReplayed():
                feed.replayed()
        self._ask_for_prefixes(self.view.workers[word.worker], now)

    def _on_tick(self, now: float) -> None:
        for worker in self.view.check_silence(now):
            self.stats.workers_hung += 1
            self._fail_legs(worker, Cause.WORKER_HUNG, f"{worker.info.id} has been silent", now)
        for worker in self.view:
            self._ask_for_prefixes(worker, now)
            if worker.draining:
                self._supervisor.move_from(worker, now)
        for key in [key for key, (_, until_s) in self._departed.items() if until_s <= now]:
            self._forget_peer(key)
        self._supervisor.on_time(now)

    def check_integrity(self) -> None:
        """Recompute what must hold between events: every leg has its attempt, every call its place and its timer."""
        self.view.check_integrity()
        self.calls.check_integrity()
        self.admission.check_integrity(set(self.calls.flows))
        legs = {(id, worker.key) for worker in self.view for id in worker.legs}
        owned = {
            (id, leg.worker.key)
            for id, flow in self.calls.by_attempt.items()
            if (attempt := flow.attempt_of(id))
            for leg in (attempt.prefill, attempt.decode)
            if leg and leg.open
        }
        assert legs == owned, "a leg without its attempt, or an attempt without its leg"
