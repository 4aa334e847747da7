"""What of recent prompts is cached where, as a tree for people: a run of pages with the same holders is one node.

Made when somebody looks, from the prompts that PrefixWatch remembers and the index: pages in the index are nameless and
know nothing of what they follow. Nothing is decided by it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from router.prefix_watch import num_common

Chain = Sequence[bytes]
"""Digests of one prompt's pages, in order."""
Holders = Callable[[Chain], Mapping[str, int]]
"""Worker -> leading pages of a chain that it holds, for those that hold any."""


@dataclass(slots=True)
class PrefixNode:
    """A run of pages, each the one child of the one before, that the same workers hold."""

    digest: bytes
    """Of its first page."""
    pages: int
    workers: tuple[str, ...]
    children: "list[PrefixNode]" = field(default_factory=list)


def outline(families: Iterable[Sequence[Chain]], holders: Holders, max_nodes: int) -> list[PrefixNode]:
    """A root for each family of chains that begin with the same page, with all below it; those that nobody holds are
    left out, and so is what comes after `max_nodes` nodes.
    """
    roots: list[PrefixNode] = []
    for chains in families:
        nodes: dict[bytes, PrefixNode] = {}
        for chain in chains:
            runs = holders(chain)
            ends = set(runs.values()) | {num_common(chain, other) for other in chains}
            above: PrefixNode | None = None
            start = 0
            for end in sorted(each for each in ends if each <= max(runs.values(), default=0)):
                node = nodes.get(chain[start])
                if node is None:
                    if not max_nodes:
                        return roots
                    max_nodes -= 1
                    workers = tuple(sorted(worker for worker, pages in runs.items() if pages > start))
                    node = nodes[chain[start]] = PrefixNode(chain[start], end - start, workers)
                    (roots if above is None else above.children).append(node)
                above, start = node, end
    return roots


def num_shown(nodes: Iterable[PrefixNode]) -> int:
    """Pages in these trees, each worker's counted for itself."""
    return sum(node.pages * len(node.workers) + num_shown(node.children) for node in nodes)
