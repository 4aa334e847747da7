"""What is cached where, as a tree that people can read: runs of pages with the same holders as one node.

Beside the index, which finds prefixes and keeps no tree. It follows the same events and is bounded: of a large cache
it shows a part and says so. Nothing is decided by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.core.messages import KVEvent, PagesCleared, PagesRemoved, PagesStored

MAX_PAGES = 8192
"""Distinct pages that are followed."""


@dataclass(slots=True)
class PrefixNode:
    """A run of pages, each the one child of the one before, that the same workers hold."""

    digest: bytes
    """Of its first page."""
    pages: int
    workers: tuple[str, ...]
    children: "list[PrefixNode]" = field(default_factory=list)


class PrefixOutline:
    """Pages, what they follow, and who holds them."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes] = {}
        self._holders: dict[bytes, set[str]] = {}
        self._held: dict[str, set[bytes]] = {}
        self._left_out: dict[str, int] = {}

    @property
    def num_left_out(self) -> int:
        """Pages of workers that are not followed, each worker's counted for itself."""
        return sum(self._left_out.values())

    def apply(self, worker: str, events: Iterable[KVEvent]) -> None:
        """One batch of what `worker` says of its cache."""
        for event in events:
            match event:
                case PagesStored(parent, digests):
                    self._store(worker, parent, digests)
                case PagesRemoved(digests):
                    self._remove(worker, digests)
                case PagesCleared():
                    self.forget(worker)

    def forget(self, worker: str) -> None:
        """It holds nothing, or is gone."""
        self._remove(worker, list(self._held.get(worker, ())))
        self._held.pop(worker, None)
        self._left_out.pop(worker, None)

    def tree(self, max_nodes: int) -> list[PrefixNode]:
        """Roots with all below them, larger ones first; at most `max_nodes` nodes, others are left out."""
        children: dict[bytes, list[bytes]] = {}
        roots = []
        for digest in self._holders:
            parent = self._parents[digest]
            if parent in self._holders:
                children.setdefault(parent, []).append(digest)
            else:
                roots.append(digest)
        budget = [max_nodes]
        return self._nodes(roots, children, budget)

    def _nodes(self, digests: list[bytes], children: dict[bytes, list[bytes]], budget: list[int]) -> list[PrefixNode]:
        """Level by level would be fairer to small roots; a whole branch at a time is easier to read."""
        nodes: list[PrefixNode] = []
        stack = [(digests, nodes)]
        while stack:
            level, into = stack.pop()
            runs = sorted((self._run(digest, children) for digest in level), key=lambda run: -run[0].pages)
            for node, below in runs[: max(0, budget[0])]:
                budget[0] -= 1
                into.append(node)
                if below:
                    stack.append((below, node.children))
        return nodes

    def _run(self, digest: bytes, children: dict[bytes, list[bytes]]) -> tuple[PrefixNode, list[bytes]]:
        """The node that begins at `digest`, and what follows it."""
        holders, pages = self._holders[digest], 1
        node = PrefixNode(digest, 0, tuple(sorted(holders)))
        below = children.get(digest, [])
        while len(below) == 1 and self._holders[below[0]] == holders:
            pages += 1
            below = children.get(below[0], [])
        node.pages = pages
        return node, below

    def _store(self, worker: str, parent: bytes, digests: Sequence[bytes]) -> None:
        held = self._held.setdefault(worker, set())
        for digest in digests:
            if digest not in self._holders and len(self._holders) >= MAX_PAGES:
                self._left_out[worker] = self._left_out.get(worker, 0) + 1
                continue
            self._parents[digest] = parent
            self._holders.setdefault(digest, set()).add(worker)
            held.add(digest)
            parent = digest

    def _remove(self, worker: str, digests: Iterable[bytes]) -> None:
        held = self._held.get(worker, set())
        for digest in digests:
            if digest not in held:
                self._left_out[worker] = max(0, self._left_out.get(worker, 0) - 1)
                continue
            held.discard(digest)
            holders = self._holders[digest]
            holders.discard(worker)
            if not holders:
                del self._holders[digest], self._parents[digest]
