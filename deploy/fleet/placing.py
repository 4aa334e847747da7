"""On which node a worker goes. Pure.

A worker's ranks are threads of one process and its devices those of one host, so a worker is one bundle: wherever it
fits, all its ranks are on one node. What is left to decide is which node, and to say what lacks when there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = Mapping[str, float]
SPREAD, PACK = "spread", "pack"
_SLACK = 1e-6
"""Ray counts in steps of 1e-4; sums of floats come out a little off."""


@dataclass(frozen=True, slots=True)
class Node:
    """One live node of the cluster."""

    id: str
    total: Resources
    free: Resources
    """Of `total`, by Ray's own word; it may be late by a second."""
    labels: Mapping[str, str]
    address: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker asks for."""

    resources: Resources
    labels: Mapping[str, str]
    """Each must be one of the node's."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a member of the same fleet has been given."""

    node: str
    kind: str
    """Those of one kind are spread: a pool's of one version, since the others are about to leave."""
    resources: Resources


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a pool lies in the cluster."""

    kind: str = SPREAD
    """spread: away from others of its kind, then from all others. pack: together with as much of the fleet as fits."""
    topology: str = ""
    """A node label, such as a rack's: nodes that share its value are one. Empty: each node for itself."""


def choose(
    need: Need, kind: str, nodes: Sequence[Node], taken: Sequence[Taken], strategy: Strategy = Strategy()
) -> str | None:
    """The id of the node, or None when it fits nowhere; `lacks` says why."""
    fitting = [node for node in nodes if not _missing(need, node, taken)]
    if not fitting:
        return None
    domains = {node.id: node.labels.get(strategy.topology, node.id) for node in nodes}

    def cost(node: Node) -> tuple[float, ...]:
        near = [each for each in taken if domains.get(each.node) == domains[node.id]]
        peers, here = sum(each.kind == kind for each in near), sum(each.node == node.id for each in taken)
        if strategy.kind == PACK:
            return (-len(near), -here)
        return (peers, sum(each.node == node.id and each.kind == kind for each in taken), len(near), here)

    return min(fitting, key=lambda node: (cost(node), node.id)).id


def lacks(need: Need, nodes: Sequence[Node], taken: Sequence[Taken]) -> str:
    """Why `need` fits on no node: what the one that comes closest lacks."""
    if not nodes:
        return "the cluster has no node"
    labelled = [node for node in nodes if _has_labels(need, node)]
    if not labelled:
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(need.labels.items()))
        return f"no node has the labels {wanted}"
    closest = min(labelled, key=lambda node: (len(_missing(need, node, taken)), node.id))
    missing = _missing(need, closest, taken)
    words = [
        f"{name} {_amount(name, need.resources[name])} (the best node has {_amount(name, best)} left of "
        f"{_amount(name, most)})"
        for name in missing
        for best, most in [_best(name, labelled, taken)]
    ]
    return "lacks " + " and ".join(words)


def _best(name: str, nodes: Sequence[Node], taken: Sequence[Taken]) -> tuple[float, float]:
    return max((_left(name, node, taken), node.total.get(name, 0.0)) for node in nodes)


def _has_labels(need: Need, node: Node) -> bool:
    return all(node.labels.get(key) == value for key, value in need.labels.items())


def _missing(need: Need, node: Node, taken: Sequence[Taken]) -> list[str]:
    """Names of what the node has too little of; a missing label stands for everything."""
    if not _has_labels(need, node):
        return list(need.resources)
    return [name for name, amount in need.resources.items() if _left(name, node, taken) + _SLACK < amount]


def _left(name: str, node: Node, taken: Sequence[Taken]) -> float:
    """By Ray's word, or by what was given away since it spoke: the smaller one."""
    ours = sum(each.resources.get(name, 0.0) for each in taken if each.node == node.id)
    return max(min(node.free.get(name, 0.0), node.total.get(name, 0.0) - ours), 0.0)


def _amount(name: str, value: float) -> str:
    return f"{value / (1 << 30):.1f} GiB" if name == "memory" else f"{value:g}"
