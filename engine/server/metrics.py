"""What Prometheus sees of one worker. Fed by the engine thread, served by engine.server.operations."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from engine.core.messages import Adopted, Finished, HandoffFailed, PeerStatus, Started
from engine.core.types import Request, WorkerInfo, WorkerLoad
from engine.server.role import Ended, RequestWord

STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
WAIT_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class _RequestMetrics:
    """Counted per request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(
            "baton_worker_requests", "Requests that ended here, by how.", ["outcome"], registry=registry
        )
        self.running = Gauge("baton_worker_requests_open", "Requests that have not ended here.", registry=registry)
        self.response_s = Histogram(
            "baton_worker_response_seconds",
            "From arrival to the end of a request on this worker.",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.queue_s = Histogram(
            "baton_worker_queue_seconds", "From arrival to the first step.", buckets=WAIT_BUCKETS_S, registry=registry
        )
        self.prompt_tokens = Counter(
            "baton_worker_prompt_tokens", "Prompt tokens of started requests.", registry=registry
        )
        self.cached_tokens = Counter(
            "baton_worker_cached_tokens", "Prompt tokens that were in the prefix cache.", registry=registry
        )
        self.hit_rate = Gauge(
            "baton_worker_cache_hit_rate", "Cached share of all prompt tokens since the start.", registry=registry
        )


class _EngineMetrics:
    """Counted per step or sampled with each load report."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("baton_worker_generated_tokens", "Tokens drawn.", registry=registry)
        self.step_s = Histogram(
            "baton_worker_step_seconds", "Wall time a step.", buckets=STEP_BUCKETS_S, registry=registry
        )
        self.rows = Gauge("baton_worker_running_rows", "Requests in the current step.", registry=registry)
        self.queued = Gauge("baton_worker_queued_requests", "Requests that wait.", registry=registry)
        self.queued_tokens = Gauge("baton_worker_queued_tokens", "Prompt tokens that wait.", registry=registry)
        self.prefill_speed = Gauge(
            "baton_worker_prefill_tokens_per_second", "Measured while prefilling.", registry=registry
        )
        self.pages = Gauge("baton_worker_pages", "KV pages by state.", ["state"], registry=registry)
        self.page_age_s = Gauge(
            "baton_worker_page_oldest_seconds",
            "How long the oldest lease on pages of that state has been in it.",
            ["state"],
            registry=registry,
        )
        self.page_faults = Counter(
            "baton_page_conservation_failures",
            "Times that pages were missing from the count, or still leased with no request here.",
            registry=registry,
        )
        self.draining = Gauge("baton_worker_draining", "1 while it wants to leave.", registry=registry)
        self.kv_bytes = Gauge("baton_worker_kv_bytes", "KV memory by state.", ["state"], registry=registry)
        self.preempted = Counter(
            "baton_worker_preempted", "Requests that lost their pages and were computed again.", registry=registry
        )
        self.num_preempted = self.num_page_faults = 0
        """Of the last load report."""


class _HandoffMetrics:
    """Counted per incoming handoff."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(
            "baton_worker_handoffs", "Incoming handoffs by how they ended.", ["outcome"], registry=registry
        )
        for outcome in ("adopted", "failed", "peer_lost"):
            self.ended.labels(outcome)  # from the start on: a rate does not see the first count of a new series
        self.bytes = Counter("baton_worker_transfer_bytes", "Bytes pulled from peers.", registry=registry)
        self.seconds = Histogram(
            "baton_worker_transfer_seconds",
            "From the first ticket to the proof of all pages.",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.pages = Counter(
            "baton_worker_handoff_pages",
            "Pages of adopted handoffs, by where they were.",
            ["source"],
            registry=registry,
        )


class _PeerMetrics:
    """Sampled with each load report."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._routers = Gauge("baton_worker_routers", "Routers with an open session.", registry=registry)
        self._ready = Gauge(
            "baton_worker_peer_ready", "1 while pages can be pulled from that worker.", ["peer"], registry=registry
        )
        self._speed = Gauge(
            "baton_worker_peer_bytes_per_second", "Measured by the proof of the pair.", ["peer"], registry=registry
        )
        self._known: set[str] = set()

    def set(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """What holds now; peers that are not among `peers` any more are no longer shown."""
        self._routers.set(num_routers)
        for peer in peers:
            self._ready.labels(peer.worker_id).set(peer.ready)
            self._speed.labels(peer.worker_id).set(peer.bytes_per_s)
        known = {peer.worker_id for peer in peers}
        for gone in self._known - known:
            self._ready.remove(gone)
            self._speed.remove(gone)
        self._known = known


@dataclass(slots=True)
class _Open:
    """Mutable only in that nobody pays for freezing it."""

    arrival_s: float
    num_tokens: int


class WorkerMetrics:
    """The engine loop's observer."""

    def __init__(self, info: WorkerInfo) -> None:
        self.registry = CollectorRegistry()
        self._requests = _RequestMetrics(self.registry)
        self._engine = _EngineMetrics(self.registry)
        self._handoffs = _HandoffMetrics(self.registry)
        self._peers = _PeerMetrics(self.registry)
        self._page_bytes = info.layout.page_bytes
        self._open: dict[int, _Open] = {}
        self._num_prompt = self._num_cached = 0
        Info("baton_worker", "Who this worker is.", registry=self.registry).info(
            {
                "worker": info.id,
                "incarnation": f"{info.incarnation:016x}",
                "roles": ",".join(info.roles),
                "model": info.model,
            }
        )

    def submitted(self, request: Request) -> None:
        """A session submitted a request."""
        self._open[request.id] = _Open(request.arrival_s, len(request.tokens))
        self._requests.running.set(len(self._open))

    def said(self, word: RequestWord, now: float) -> None:
        """The role said something of a request."""
        match word:
            case Started(id, cached_tokens, queue_s):
                self._started(id, cached_tokens, queue_s)
            case Adopted():
                self._handoffs.ended.labels("adopted").inc()
                self._handoffs.bytes.inc(word.transfer_bytes)
                self._handoffs.seconds.observe(word.transfer_s)
                self._handoffs.pages.labels("pulled").inc(word.pulled_pages)
                self._handoffs.pages.labels("local").inc(word.local_pages)
            case HandoffFailed(id):
                self._handoffs.ended.labels("peer_lost" if word.peer_lost else "failed").inc()
                self._ended(id, "handoff_failed", now)
            case Finished(id, reason):
                self._ended(id, reason.value, now)
            case Ended(id, how):
                self._ended(id, how, now)
            case _:
                pass

    def stepped(self, num_rows: int, wall_s: float) -> None:
        """A step ended."""
        self._engine.tokens.inc(num_rows)
        self._engine.step_s.observe(wall_s)

    def loaded(self, load: WorkerLoad) -> None:
        """A load report went out."""
        engine = self._engine
        engine.rows.set(load.running_rows)
        engine.queued.set(load.queued_requests)
        engine.queued_tokens.set(load.queued_tokens)
        engine.prefill_speed.set(load.prefill_tokens_per_s)
        for count in load.pages_by_state:
            engine.pages.labels(count.state).set(count.pages)
            engine.kv_bytes.labels(count.state).set(count.pages * self._page_bytes)
            engine.page_age_s.labels(count.state).set(count.oldest_s)
        engine.page_faults.inc(load.num_page_faults - engine.num_page_faults)
        engine.num_page_faults = load.num_page_faults
        engine.draining.set(load.draining)
        engine.preempted.inc(load.num_preempted - engine.num_preempted)
        engine.num_preempted = load.num_preempted

    def connected(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """See Observer."""
        self._peers.set(num_routers, peers)

    def _started(self, id: int, cached_tokens: int, queue_s: float) -> None:
        request = self._open.get(id)
        if request is None:
            return
        self._requests.queue_s.observe(queue_s)
        self._requests.prompt_tokens.inc(request.num_tokens)
        self._requests.cached_tokens.inc(cached_tokens)
        self._num_prompt += request.num_tokens
        self._num_cached += cached_tokens
        self._requests.hit_rate.set(self._num_cached / max(1, self._num_prompt))

    def _ended(self, id: int, outcome: str, now: float) -> None:
        request = self._open.pop(id, None)
        if request is not None:
            self._requests.ended.labels(outcome).inc()
            self._requests.response_s.observe(max(0.0, now - request.arrival_s))
            self._requests.running.set(len(self._open))
