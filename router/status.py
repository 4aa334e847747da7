"""The router's answer to "how is the service?"."""

from itertools import islice

from engine.core.types import WorkerLoad
from router.api import CacheView, PrefixHolders, PrefixReport, PrefixTree, RequestStatus, ServiceStatus, WorkerStatus
from router.core import RouterCore
from router.flow import Flow
from router.link import WorkerLink
from router.prefix_outline import Chain, num_shown, outline
from router.recent import RecentTimes
from router.stats import RouterStats
from router.worker import WorkerState

MAX_REQUESTS = 50
"""Shown at once."""
MAX_NODES = 100
"""Of the prefix tree that is shown."""


def service_status(
    core: RouterCore, links: list[WorkerLink], now: float, recent: RecentTimes | None = None
) -> ServiceStatus:
    """A snapshot of the core and of every worker that should be there."""
    workers = tuple(_worker_status(core, link, now) for link in links if link.info is not None)
    ready = any(worker.routable(now) for worker in core.view)
    return ServiceStatus(
        ready=ready,
        detail="" if ready else _why_not(links),
        workers=workers,
        queued_requests=core.admission.num_waiting,
        running_requests=core.admission.num_running,
        prompt_tokens=core.stats.prompt_tokens,
        cached_tokens=core.stats.cached_tokens,
        requests=tuple(_request_status(flow, now) for flow in islice(core.calls.flows.values(), MAX_REQUESTS)),
        totals=_totals(core.stats, recent),
        recent=recent,
    )


def _totals(stats: RouterStats, recent: RecentTimes | None) -> tuple[tuple[str, int], ...]:
    return (
        ("calls", stats.calls),
        ("finished", stats.outcomes["finished"]),
        ("failed", sum(stats.outcomes.values()) - stats.outcomes["finished"] - stats.outcomes["cancelled"]),
        ("drawn_tokens", recent.tokens if recent else stats.output_tokens),
        ("retries", sum(stats.retries.values())),
        ("handoffs", stats.handoffs),
        ("handoff_failures", stats.handoff_failures),
        ("pages_pulled", stats.pages_pulled),
        ("transfer_bytes", stats.transfer_bytes),
    )


def _request_status(flow: Flow, now: float) -> RequestStatus:
    attempt = flow.attempt
    return RequestStatus(
        id=flow.call.request_id,
        state=flow.state,
        prompt_tokens=flow.num_prompt,
        tokens=flow.num_emitted,
        age_s=now - flow.arrived_s,
        prefill_worker=attempt.prefill.worker.info.id if attempt and attempt.prefill else "",
        decode_worker=attempt.decode.worker.info.id if attempt else "",
    )


def prefix_report(core: RouterCore, limit: int) -> PrefixReport:
    """The workers' caches as this router knows them, and the `limit` prefixes that saved the most."""
    view = core.view
    views = []
    for key, worker in view.workers.items():
        feed, size = view.feeds[key], worker.info.layout.page_size
        tokens = tuple((tier, pages * size) for tier, pages in feed.tiers.items())
        said = worker.load.view_digest if worker.load else None
        source = "public" if feed.is_public else "session"
        views.append(CacheView(worker.info.id, source, feed.synced, tokens, view.index.view_digest(feed.slot), said))
    by_slot = {worker.slot: worker for worker in view}
    prefixes = []
    for prefix in view.watch.top(limit):
        runs = view.index.match(prefix.digests).items()
        held = [(by_slot[slot].info.id, pages * prefix.page_size) for slot, pages in runs if slot in by_slot]
        held.sort(key=lambda pair: -pair[1])
        prefixes.append(PrefixHolders(tuple(prefix.head), prefix.num_tokens, prefix.uses, tuple(held)))
    return PrefixReport(tuple(views), tuple(prefixes), len(view.index))


def prefix_tree(core: RouterCore) -> PrefixTree:
    """What of recent prompts the workers' caches hold; what saves the most comes first."""
    view = core.view
    names = {worker.slot: worker.info.id for worker in view}

    def holders(chain: Chain) -> dict[str, int]:
        return {names[slot]: pages for slot, pages in view.index.match(chain).items() if slot in names}

    nodes = outline([list(prefix.chains) for prefix in view.watch.top(MAX_NODES)], holders, MAX_NODES)
    page_size = next((worker.info.layout.page_size for worker in view), 0)
    num_pages = sum(view.index.num_pages(slot) for slot in names)
    return PrefixTree(tuple(nodes), page_size, max(num_pages - num_shown(nodes), 0))


def _worker_status(core: RouterCore, link: WorkerLink, now: float) -> WorkerStatus:
    assert link.info is not None, "only workers that were met have a status"
    state, detail = link.state, link.detail
    load: WorkerLoad | None = None
    age_s = 0.0
    worker = core.view.workers.get(link.key) if link.key else None
    if worker is not None:
        load, age_s = worker.load, now - worker.load_s
        if worker.draining:
            state, detail = "draining", _draining(core, worker, now)
        elif worker.health != "ready":
            state, detail = "hung", f"silent for {now - worker.heard_s:.1f} s"
        elif not worker.breaker.allows(now):
            state, detail = "resting", "its last requests failed"
    peers = tuple(status for pair, status in core.view.links.items() if pair[1] == link.key)
    num_requests = len(worker.legs) if worker is not None else 0
    return WorkerStatus(link.info, state, detail, load, age_s, peers, num_requests)


def _draining(core: RouterCore, worker: WorkerState, now: float) -> str:
    if worker.num_decodes and not core.view.can_take_over(worker, now):
        return "it gets no new work; no other worker can take over what decodes there, so that ends there"
    return "it gets no new work"


def _why_not(links: list[WorkerLink]) -> str:
    if not links:
        return "no workers were added"
    return "; ".join(f"{link.address} is {link.state}" + (f": {link.detail}" if link.detail else "") for link in links)
