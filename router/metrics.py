"""What a router tells Prometheus: the core's own counts, read when asked, and times measured at the client's edge."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.core.errors import Code
from router.api import Delta, Timing
from router.breaker import BreakerState
from router.core import RouterCore
from router.recent import RecentTimes
from router.stream import CallStream
from router.supervisor import Cause
from router.view import ClusterView

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
            (
                "hedges_won",
                "Requests whose first token came from a second attempt beside the first",
                stats.routes["hedge_won"],
            ),
            ("handoffs", "Requests whose pages were adopted by a decode worker", stats.handoffs),
            ("handoff_failures", "Handoffs that did not end with proven pages", stats.handoff_failures),
            ("pages_pulled", "Pages that decode workers pulled", stats.pages_pulled),
            ("pages_found", "Pages of handoffs that the decode worker had already", stats.pages_found),
            ("transfer_bytes", "Bytes that decode workers pulled", stats.transfer_bytes),
            ("workers_lost", "Sessions with workers that ended", stats.workers_lost),
            ("workers_hung", "Times that a worker fell silent", stats.workers_hung),
        ):
            yield CounterMetricFamily(f"baton_router_{name}", text, value=number)
        for name, label, counts, known in (
            ("requests", "outcome", stats.outcomes, ("finished", *Code)),
            ("retries", "cause", stats.retries, tuple(Cause)),
            ("attempts", "route", stats.routes, ("pair", "whole", "hedge")),
        ):
            family = CounterMetricFamily(f"baton_router_{name}", f"{name.capitalize()} by {label}", labels=(label,))
            # From the start on: a rate does not see the first count of a series that begins with it.
            for value in dict.fromkeys((*known, *counts)):
                family.add_metric((str(value),), counts[value])
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
            ("index_pages_left_out", "Pages not indexed: their worker has too many", core.view.index.num_left_out),
            ("ttft_prediction_error", "Moving average of |predicted - actual| / actual", core.model.ttft_error.value),
        ):
            yield GaugeMetricFamily(f"baton_router_{name}", text, value=number)
        yield from _of_workers(core.view)
        yield from _of_pairs(core.view)
        counts = core.view.feed_counts
        feeds = CounterMetricFamily("baton_router_prefix_feed", "What went wrong with prefix events", labels=("what",))
        for what, number in (("gap", counts.gaps), ("stale_view", counts.stale), ("lost_view", counts.losses)):
            feeds.add_metric((what,), number)
        yield feeds


_OF_WORKER = (
    ("legs", "Open legs of requests"),
    ("pages", "Pages known to be cached"),
    ("ready", "1 while it may get work by health"),
    ("draining", "1 while it is leaving"),
    ("breaker_open", "1 while its last requests failed: it gets a probe now and then, and nothing else"),
    ("index_synced", "1 while the index says of it exactly what its cache holds"),
)
_OF_PAIR = (
    ("proven", "1 while the target can pull pages from the source"),
    ("bytes_per_second", "What the pair's proof measured"),
    ("breaker_open", "1 while handoffs of this pair failed too often"),
)


def _of_workers(view: ClusterView) -> Iterator[Metric]:
    """One sample a worker id; an incarnation that is about to be forgotten gives way to its successor."""
    values = {
        worker.info.id: (
            len(worker.legs),
            view.index.num_pages(worker.slot),
            worker.health == "ready" and not worker.draining,
            worker.draining,
            worker.breaker.state is not BreakerState.CLOSED,
            view.feeds[worker.key].synced,
        )
        for worker in view
    }
    yield from _families("worker", _OF_WORKER, ("worker",), {(id,): each for id, each in values.items()})


def _of_pairs(view: ClusterView) -> Iterator[Metric]:
    """Pairs of workers that are here. A target's last word of a source that left is no news of its successor."""
    values: dict[tuple[str, ...], tuple[bool, float, bool]] = {}
    for (source, target), status in view.links.items():
        if source not in view.workers:
            continue
        breaker = view.pair_breakers.get((source, target))
        is_open = breaker is not None and breaker.state is not BreakerState.CLOSED
        names = (status.worker_id, view.workers[target].info.id)
        values[names] = (status.ready, status.bytes_per_s, is_open)
    yield from _families("pair", _OF_PAIR, ("source", "target"), values)


def _families(
    kind: str,
    families: Sequence[tuple[str, str]],
    labels: tuple[str, ...],
    values: Mapping[tuple[str, ...], Sequence[float]],
) -> Iterator[Metric]:
    """One gauge for each of `families`; `values` has a value of each by labels."""
    for index, (name, text) in enumerate(families):
        family = GaugeMetricFamily(f"baton_router_{kind}_{name}", text, labels=labels)
        for names, each in values.items():
            family.add_metric(names, each[index])
        yield family


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
        self._queue = seconds("queue", "Part of TTFT: waiting at the router")
        self._admit = seconds("admit", "Part of TTFT: waiting at the worker that computes the prompt")
        self._prefill = seconds("prefill", "Part of TTFT: computing the prompt")
        self._transfer = seconds("transfer", "Pages on their way to the decode worker, from the first ticket to proof")
        self._first_step = seconds(
            "first_step", "The rest of the gap between first and second token: the ticket's way, admission, the step"
        )

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
        if delta.finish_reason is not None and delta.timing is not None:
            self._end(stream, delta.timing, now)

    def _end(self, stream: CallStream, timing: Timing, now: float) -> None:
        self._response.observe(now - stream.sent_s)
        self._queue.observe(timing.queue_s)
        self._admit.observe(timing.admit_s)
        self._prefill.observe(timing.prefill_s)
        self.recent.on_end(timing)
        if timing.transfer_s:
            self._transfer.observe(timing.transfer_s)
            self._first_step.observe(timing.first_step_s)
