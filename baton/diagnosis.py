"""What is right and wrong with a service, from what its /status says. No I/O.

A pair is (source, target): `target` pulls pages from `source`. Prompts go from prefill to decode workers; when a decode
worker drains, what runs there goes to another one. So every decode worker should be able to pull from every other one.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

HEARD_S = 1.0
"""A worker speaks every 0.2 s at least."""
STUCK_S = 60.0
"""A transfer takes milliseconds: pages that wait for one for so long wait for nothing."""
_IN_TRANSFER = ("reserved", "filling", "quarantined")
_CONNECTED = ("ready", "draining", "resting")


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Whether `target` can pull from `source`, and over what."""

    source: str
    target: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at."""

    checks: tuple[Check, ...]
    pairs: tuple[Pair, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return all(check.ok for check in self.checks) and all(pair.ok for pair in self.pairs)


def examine(status: Json) -> Report:
    """Judge a service by its /status."""
    workers: list[Json] = status["workers"]
    targets = [worker for worker in workers if "decode" in worker["roles"]]
    pairs = [_pair(source, target) for source in workers for target in targets if source["id"] != target["id"]]
    checks = (
        Check("service", status["ready"], "ready" if status["ready"] else f"not ready: {status['detail']}"),
        _heard(workers),
        _incarnations(workers),
        _versions(workers),
        _pages(workers),
        _stuck(workers),
    )
    return Report(checks, tuple(pairs))


def _pair(source: Json, target: Json) -> Pair:
    for worker in (source, target):
        if worker["state"] not in _CONNECTED:
            return Pair(source["id"], target["id"], False, f"{worker['id']} is {worker['state']}")
    said = [peer for peer in target["peers"] if _who(peer) == _who(source)]
    if not said:
        return Pair(source["id"], target["id"], False, "not proven: the target has not said anything of it")
    (peer,) = said
    if not peer["ready"]:
        return Pair(source["id"], target["id"], False, f"refused: {peer['detail']}")
    text = f"{peer['transport']}, {peer['bytes_per_s'] / 1e9:.2f} GB/s, proven"
    if peer["detail"]:
        text += f"; not over {peer['detail']}"
    differences = _differences(source["layout"], target["layout"])
    return Pair(source["id"], target["id"], True, "; ".join([text, *differences]))


def _differences(source: Json, target: Json) -> list[str]:
    return [f"{key} {source[key]} to {target[key]}" for key in ("page_size", "tp_size") if source[key] != target[key]]


def _heard(workers: list[Json]) -> Check:
    silent = []
    for worker in workers:
        load = worker["load"]
        if worker["state"] not in _CONNECTED:
            silent.append(
                f"{worker['id']} is {worker['state']}" + (f": {worker['detail']}" if worker["detail"] else "")
            )
        elif load is None or load["age_s"] > HEARD_S:
            age = "nothing" if load is None else f"nothing for {load['age_s']:.1f} s"
            silent.append(f"{worker['id']} has said {age}")
    if not workers:
        return Check("workers", False, "there are none")
    return Check("workers", not silent, "; ".join(silent) or f"{len(workers)} heard within {HEARD_S:g} s")


def _incarnations(workers: list[Json]) -> Check:
    now: dict[str, set[str]] = {}
    for worker in workers:
        now.setdefault(worker["id"], set()).add(worker["incarnation"])
    wrong = [f"{name} is there {len(known)} times" for name, known in now.items() if len(known) > 1]
    wrong += [
        f"{worker['id']} still speaks of {peer['id']} as {peer['incarnation']}"
        for worker in workers
        for peer in worker["peers"]
        if peer["id"] in now and peer["incarnation"] not in now[peer["id"]]
    ]
    return Check("incarnations", not wrong, "; ".join(wrong) or "one of each worker, and all know the same ones")


def _versions(workers: list[Json]) -> Check:
    groups: dict[str, list[str]] = {}
    for worker in workers:
        layout = worker["layout"]
        kind = (
            f"baton {worker['version']}, layout {layout['version']}, {worker['model']} ({layout['model_hash'][:12]}), "
            f"{layout['dtype']}, pages of {layout['page_size']} tokens, tp {layout['tp_size']}"
        )
        groups.setdefault(kind, []).append(worker["id"])
    if len(groups) == 1:
        return Check("versions", True, f"all workers: {next(iter(groups))}")
    models = {worker["layout"]["model_hash"] for worker in workers}
    return Check("versions", len(models) <= 1, "; ".join(f"{', '.join(ids)}: {kind}" for kind, ids in groups.items()))


def _pages(workers: list[Json]) -> Check:
    wrong = []
    for worker in workers:
        if (load := worker["load"]) is None:
            continue
        found = sum(load["pages_by_state"].values())
        if found != worker["num_pages"]:
            wrong.append(f"{worker['id']} accounts for {found} of {worker['num_pages']} pages")
        if load["num_page_faults"]:
            wrong.append(f"{worker['id']} found its ledger wrong {load['num_page_faults']} times; its log says how")
    return Check("pages", not wrong, "; ".join(wrong) or "all accounted for")


def _stuck(workers: list[Json]) -> Check:
    wrong = [
        f"{worker['id']}: {state} for {worker['load']['oldest_page_s'][state]:.0f} s"
        for worker in workers
        if worker["load"] is not None
        for state in _IN_TRANSFER
        if worker["load"]["oldest_page_s"].get(state, 0.0) > STUCK_S
    ]
    return Check("transfers", not wrong, "; ".join(wrong) or "no page waits for one for long")


def _who(entry: Json) -> tuple[str, str]:
    return entry["id"], entry["incarnation"]
