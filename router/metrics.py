"""What a router tells Prometheus: the core's own counts, read when asked, and times measured at the client's edge."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.api import Delta, Timing
from router.core import RouterCore
from router.recent import RecentTimes
from router.stream import CallStream

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Observer(Protocol):
    """What the shell tells of each delta on its way to a client."""

    recent: RecentTimes

    def delta(self, stream: CallStream, delta: Delta, now: float) -> None:
        """`delta` is pushed to `stream`."""


class CoreCollector(Collector):
    """Reads the core's counters when Prometheus asks; nothing is counted twice."""

    def __init__(self, core: RouterCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """All counters and gauges."""
        stats = self._core.stats
        for name, text, number in (
            ("prompt_tokens", "Prompt tokens of requests that got their first token", stats.prompt_tokens),
            ("cached_tokens", "Of prompt_tokens, those whose KV was found in a cache", stats.cached_tokens),
            ("output_tokens", "Tokens of finished requests", stats.output_tokens),
            ("resumed", "Requests that went on elsewhere after their first token", stats.resumed),
            ("handoffs", "Requests whose pages were adopted by a decode worker", stats.handoffs),
            ("handoff_failures", "Handoffs that did not end with proven pages", stats.handoff_failures),
            ("pages_pulled", "Pages that decode workers pulled", stats.pages_pulled),
            ("pages_found", "Pages of handoffs that the decode worker had already", stats.pages_found),
            ("transfer_bytes", "Bytes that decode workers pulled", stats.transfer_bytes),
            ("workers_lost", "Sessions with workers that ended", stats.workers_lost),
            ("workers_hung", "Times that a worker fell silent", stats.workers_hung),
        ):
            yield CounterMetricFamily(f"baton_router_{name}", text, value=number)
        for name, label, counts in (
            ("requests", "outcome", stats.outcomes),
            ("retries", "cause", stats.retries),
            ("attempts", "route", stats.routes),
        ):
            family = CounterMetricFamily(f"baton_router_{name}", f"{name.capitalize()} by {label}", labels=(label,))
            for value, count in counts.items():
                family.add_metric((str(value),), count)
            yield family
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        core = self._core
        hit_rate = core.stats.cached_tokens / max(core.stats.prompt_tokens, 1)
        for name, text, number in (
            ("cache_hit_rate", "Cached over all prompt tokens since the start", hit_rate),
            ("running_requests", "Requests that have a place on workers", core.admission.num_running),
            ("queued_requests", "Requests that wait for a place", core.admission.num_waiting),
            ("indexed_pages", "Distinct pages that some worker holds", len(core.view.index)),
            ("ttft_prediction_error", "Moving average of |predicted - actual| / actual", core.model.ttft_error.value),
        ):
            yield GaugeMetricFamily(f"baton_router_{name}", text, value=number)
        legs = GaugeMetricFamily("baton_router_worker_legs", "Open legs of requests", labels=("worker",))
        pages = GaugeMetricFamily("baton_router_worker_pages", "Pages known to be cached", labels=("worker",))
        ready = GaugeMetricFamily("baton_router_worker_ready", "1 while it may get work by health", labels=("worker",))
        for worker in core.view:
            legs.add_metric((worker.info.id,), len(worker.legs))
            pages.add_metric((worker.info.id,), core.view.index.num_pages(worker.slot))
            ready.add_metric((worker.info.id,), worker.health == "ready" and not worker.draining)
        yield from (legs, pages, ready)


class RouterMetrics:
    """Histograms at the client's edge, and the collector of the core's counts; both in `registry`."""

    def __init__(self, core: RouterCore, registry: CollectorRegistry) -> None:
        registry.register(CoreCollector(core))
        self.recent = RecentTimes()

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"baton_router_{name}_seconds", text, registry=registry, buckets=_SECONDS)

        self._ttft = seconds("ttft", "Arrival to first token at the client's edge")
        self._itl = seconds("itl", "Gap between tokens at the client's edge")
        self._response = seconds("response", "Arrival to last token")
        self._queue = seconds("queue", "Part of TTFT: waiting at the router and the prefill worker")
        self._prefill = seconds("prefill", "Part of TTFT: computing the prompt")
        self._transfer = seconds("transfer", "Pages on their way to the decode worker")

    def delta(self, stream: CallStream, delta: Delta, now: float) -> None:
        """Time the tokens of one delta."""
        if delta.tokens:
            self.recent.tokens += len(delta.tokens)
            if stream.last_s is None:
                self._ttft.observe(now - stream.sent_s)
            else:
                gap_s = (now - stream.last_s) / len(delta.tokens)
                self._itl.observe(gap_s)
                self.recent.on_gap(gap_s)
            stream.last_s = now
        if delta.timing is not None:
            self._end(stream, delta.timing, now)

    def _end(self, stream: CallStream, timing: Timing, now: float) -> None:
        self._response.observe(now - stream.sent_s)
        self._queue.observe(timing.queue_s)
        self._prefill.observe(timing.prefill_s)
        self.recent.on_end(timing)
        if timing.transfer_s:
            self._transfer.observe(timing.transfer_s)
