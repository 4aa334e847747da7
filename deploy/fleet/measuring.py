"""From what routers say of themselves to one autoscale.Sample a pool, over the time since the last look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from deploy.fleet.autoscale import Objectives, Sample
from engine.core.types import WorkerLoad
from router.api import ServiceStatus

_HISTOGRAMS = {"prefill": "baton_router_ttft_seconds", "decode": "baton_router_itl_seconds"}


@dataclass(frozen=True, slots=True)
class Look:
    """Counts since the start, of one router."""

    timed: Mapping[str, tuple[float, float]]
    """By role: how many were timed, and how many of them were within the objective."""
    new_tokens: int


class Meter:
    """Remembers the last look at each router. One that is new, or started again, counts from its second look on."""

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self._last: dict[str, Look] = {}
        self._last_s: float | None = None

    def samples(
        self,
        metrics: Mapping[str, str],
        statuses: Sequence[ServiceStatus],
        pools: Mapping[str, Sequence[str]],
        now: float,
    ) -> dict[str, Sample]:
        """By pool; `pools` are the ids of the READY workers of each. Empty at the first look."""
        role_counts, new_tokens = self._since(metrics)
        before_s, self._last_s = self._last_s, now
        if before_s is None or now <= before_s:
            return {}
        loads: dict[str, WorkerLoad] = {}
        roles: dict[str, str] = {}
        for status in statuses:
            for worker in status.workers:
                if worker.load is not None:
                    loads[worker.info.id] = worker.load
                    roles[worker.info.id] = worker.info.roles[0]
        found = {}
        for pool, ids in pools.items():
            known = [loads[id] for id in ids if id in loads]
            role = next((roles[id] for id in ids if id in roles), "")
            timed, within = role_counts.get(role, (0.0, 0.0))
            found[pool] = _sample(known, len(ids), (timed, within), new_tokens / (now - before_s))
        return found

    def _since(self, metrics: Mapping[str, str]) -> tuple[dict[str, tuple[float, float]], float]:
        counts = {role: (0.0, 0.0) for role in _HISTOGRAMS}
        tokens = 0.0
        for router, text in metrics.items():
            look, last = read(text, self._objectives), self._last.get(router)
            self._last[router] = look
            if last is None or any(look.timed[role][0] < last.timed[role][0] for role in counts):
                continue
            tokens += max(look.new_tokens - last.new_tokens, 0)
            for role, (timed, within) in counts.items():
                counts[role] = (
                    timed + look.timed[role][0] - last.timed[role][0],
                    within + look.timed[role][1] - last.timed[role][1],
                )
        for router in self._last.keys() - metrics.keys():
            del self._last[router]
        return counts, tokens


def read(text: str, objectives: Objectives) -> Look:
    """One router's exposition. An objective between two buckets counts as the upper one."""
    limits = {"prefill": objectives.ttft_s, "decode": objectives.itl_s}
    timed = {role: (0.0, 0.0) for role in _HISTOGRAMS}
    tokens = {"baton_router_prompt_tokens_total": 0.0, "baton_router_cached_tokens_total": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in tokens:
                tokens[sample.name] = sample.value
        for role, name in _HISTOGRAMS.items():
            if family.name == name:
                buckets = sorted(
                    (float(sample.labels["le"]), sample.value) for sample in family.samples if "le" in sample.labels
                )
                total = buckets[-1][1]
                timed[role] = (total, next(value for limit, value in buckets if limit >= limits[role]))
    return Look(timed, int(tokens["baton_router_prompt_tokens_total"] - tokens["baton_router_cached_tokens_total"]))


def _sample(
    loads: Sequence[WorkerLoad], num_ready: int, counts: tuple[float, float], new_tokens_per_s: float
) -> Sample:
    speeds = [load.prefill_tokens_per_s for load in loads if load.prefill_tokens_per_s > 0]
    pages = sum(load.num_pages for load in loads)
    free = sum(load.free_pages for load in loads)
    return Sample(
        num_ready=num_ready,
        queued_tokens=sum(load.queued_tokens for load in loads),
        tokens_per_s=sum(speeds) / len(speeds) if speeds else 0.0,
        new_tokens_per_s=new_tokens_per_s,
        pages_used=1.0 - free / pages if pages else 0.0,
        num_timed=int(counts[0]),
        num_late=int(counts[0] - counts[1]),
    )
