"""The prefix cache's index: a radix tree over pages of token ids, one root a cache salt.

    root --[p0 p1 p2]--+--[p3 p4]      a node holds a run of pages; runs split where prompts part,
                       +--[p5]         always between two pages

Tokens come as the bytes of an int32 buffer: a whole run is compared in one memcmp. The tree owns its pages; leases
lock the path to the deepest node they read. Unlocked leaves are evicted least recently used first.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import xor

from engine.core.digest import extend_digest, page_keys, root_digest
from engine.core.messages import KVEvent, PagesRemoved, PagesStored

TOKEN_BYTES = 4


class Node:
    """A run of pages below `parent`. Only RadixTree changes it."""

    __slots__ = ("children", "digests", "key", "last_used", "locks", "pages", "parent", "queued")

    def __init__(self, parent: "Node | None", key: bytearray, pages: list[int], digests: list[bytes]) -> None:
        self.parent = parent
        self.key = key
        """Token bytes of the run, cut short in O(1); of a root: the cache salt."""
        self.pages = pages
        self.digests = digests
        """Chained digest at the end of each page; of a root: the one of the empty prefix."""
        self.children: dict[bytes, Node] = {}
        """By the bytes of a child's first page."""
        self.locks = 0
        """Leases at this node or below."""
        self.last_used = 0
        self.queued = False
        """Has an entry in the eviction heap."""


class RadixTree:
    """Which page holds which tokens after which prefix."""

    def __init__(self, page_size: int, model_hash: str) -> None:
        self._width = page_size * TOKEN_BYTES
        self._model_hash = model_hash
        self._roots: dict[bytes, Node] = {}
        self._heap: list[tuple[int, Node]] = []
        """(last_used when queued, node): ticks are unique, so nodes are never compared."""
        self._tick = 0
        self._events: list[KVEvent] = []
        self.view_digest = 0
        """The keys of all pages, XORed: who has heard of every event so far has the same."""
        self.num_pages = 0
        self.num_evictable = 0
        """Pages that no lock protects; all of them can be evicted, leaves first."""

    def match(self, salt: bytes, data: bytes, max_pages: int) -> tuple[Node, list[int]]:
        """The longest stored prefix of `data` (int32 token bytes), at most `max_pages` pages of it.

        Returns the node where it ends (split there if need be) and the pages of the whole prefix. Lock the node
        before anything else may evict it.
        """
        node, at, width = self._root(salt), 0, self._width
        pages: list[int] = []
        end = min(len(data) // width, max_pages) * width
        while at < end:
            child = node.children.get(data[at : at + width])
            if child is None:
                break
            if not (at + len(child.key) <= end and data.startswith(child.key, at)):
                node = self._split(child, self._num_common(child, data[at:end]))
                pages += node.pages
                break
            node, at = child, at + len(child.key)
            self._touch(node)
            pages += node.pages
        return node, pages

    def insert(self, node: Node, data: bytes, pages: list[int]) -> tuple[Node, list[int]]:
        """Store `pages`, which hold the tokens `data` (int32 bytes, whole pages) right after the prefix at `node`.

        Where the tokens are stored already the tree keeps the page that it has.

        Returns the node where the run ends and those of the caller's pages that the tree did not take.
        """
        width, taken = self._width, 0
        assert len(data) == len(pages) * width, "one page of tokens for each page"
        while taken < len(pages):
            rest = data[taken * width :]
            child = node.children.get(rest[:width])
            if child is None:
                return self._add_leaf(node, rest, pages[taken:]), pages[:taken]
            common = self._num_common(child, rest)
            node = child if common == len(child.pages) else self._split(child, common)
            self._touch(node)
            taken += common
        return node, pages[:taken]

    def lock(self, node: Node, locked: Node | None = None) -> None:
        """Protect the path from the root to `node`; from `locked` upwards the caller has locked it already."""
        at: Node | None = node
        while at is not locked:
            assert at is not None, "the locked node is not an ancestor"
            if at.locks == 0:
                self.num_evictable -= len(at.pages)
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        """Give up one lock of the path from the root to `node`."""
        at: Node | None = node
        while at is not None:
            assert at.locks > 0, "unlocked more often than locked"
            at.locks -= 1
            if at.locks == 0:
                self.num_evictable += len(at.pages)
                self._maybe_evictable(at)
            at = at.parent

    def evict(self, num_pages: int) -> list[int]:
        """Drop up to `num_pages` unlocked pages, those at the ends of the least recently used runs first."""
        evicted: list[int] = []
        digests: list[bytes] = []
        while len(evicted) < num_pages and self._heap:
            used, leaf = heapq.heappop(self._heap)
            leaf.queued = False
            if leaf.locks or leaf.children or leaf.parent is None:
                continue  # queued again when it becomes an unlocked leaf
            if leaf.last_used == used:
                self._cut(leaf, num_pages - len(evicted), evicted, digests)
            if leaf.pages:
                self._maybe_evictable(leaf)
        if digests:
            self._count_in_view(digests)
            self._events.append(PagesRemoved(tuple(digests)))
        self.num_pages -= len(evicted)
        self.num_evictable -= len(evicted)
        return evicted

    def drain_events(self) -> list[KVEvent]:
        """What was stored and removed since the last call, in order."""
        events, self._events = self._events, []
        return events

    def stored_pages(self, with_tokens: bool = False) -> list[PagesStored]:
        """The whole tree as PagesStored events, parents first."""
        nodes = [node for node in self._nodes() if node.pages]
        if with_tokens:
            return [replace(self._stored(node), tokens=bytes(node.key)) for node in nodes]
        return [self._stored(node) for node in nodes]

    def check_integrity(self, locks: Mapping[Node, int]) -> set[int]:
        """Recompute counts, keys, digests and locks from the nodes and the locks taken at each; returns all pages."""
        pages: list[int] = []
        evictable = 0
        queued = {id(entry[1]) for entry in self._heap}
        for node in self._nodes():
            pages += node.pages
            evictable += 0 if node.locks else len(node.pages)
            below = sum(child.locks for child in node.children.values())
            assert node.locks == locks.get(node, 0) + below, "locks do not add up"
            assert (id(node) in queued) == node.queued, "heap and node disagree"
            if node.parent is None:
                assert not node.pages, "a root holds pages"
                continue
            assert 0 < len(node.pages) * self._width == len(node.key), "a run and its tokens differ in length"
            assert node.parent.children[bytes(node.key[: self._width])] is node, "a node is under the wrong key"
            assert node.locks or node.children or node.queued, "an evictable leaf is not in the heap"
            parent = node.parent.digests[-1]
            for index, digest in enumerate(node.digests):
                parent = extend_digest(parent, memoryview(node.key)[index * self._width : (index + 1) * self._width])
                assert digest == parent, "a digest does not name its prefix"
        assert len(set(pages)) == len(pages), "two nodes hold one page"
        assert (len(pages), evictable) == (self.num_pages, self.num_evictable), "page counts are off"
        assert len(self._heap) == len(queued), "a node is in the heap twice"
        keys = (key for node in self._nodes() if node.parent for key in page_keys(node.digests))
        assert self.view_digest == reduce(xor, keys, 0), "the view's digest is off"
        return set(pages)

    # ------------------------------------------------------------ private

    def _root(self, salt: bytes) -> Node:
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Node(None, bytearray(salt), [], [root_digest(salt, self._model_hash)])
        return root

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _touch(self, node: Node) -> None:
        self._tick += 1
        node.last_used = self._tick

    def _num_common(self, node: Node, data: bytes) -> int:
        """Pages that the run of `node` and `data` have in common; at least one, for they were found by it."""
        if data.startswith(node.key):
            return len(node.pages)
        width, key = self._width, node.key
        at, end = width, min(len(key), len(data) // width * width)
        while at < end and key[at : at + width] == data[at : at + width]:
            at += width
        return at // width

    def _split(self, node: Node, num_pages: int) -> Node:
        """Cut a run after `num_pages`; returns the new upper part.

        `node` stays the lower part, so that leases at its end need not hear of it.
        """
        assert node.parent is not None and 0 < num_pages < len(node.pages), "nothing to split"
        cut = num_pages * self._width
        upper = Node(node.parent, node.key[:cut], node.pages[:num_pages], node.digests[:num_pages])
        upper.locks = node.locks
        upper.children[bytes(node.key[cut : cut + self._width])] = node
        node.parent.children[bytes(node.key[: self._width])] = upper
        node.parent, node.key = upper, node.key[cut:]
        del node.pages[:num_pages], node.digests[:num_pages]
        self._touch(upper)
        return upper

    def _add_leaf(self, parent: Node, data: bytes, pages: list[int]) -> Node:
        digests: list[bytes] = []
        last, view = parent.digests[-1], memoryview(data)
        for at in range(0, len(data), self._width):
            last = extend_digest(last, view[at : at + self._width])
            digests.append(last)
        leaf = Node(parent, bytearray(data), pages, digests)
        parent.children[data[: self._width]] = leaf
        self.num_pages += len(pages)
        self.num_evictable += len(pages)
        self._touch(leaf)
        self._maybe_evictable(leaf)
        self._count_in_view(digests)
        self._events.append(replace(self._stored(leaf), tokens=data))
        return leaf

    def _count_in_view(self, digests: Sequence[bytes]) -> None:
        """These pages came or went."""
        for key in page_keys(digests):
            self.view_digest ^= key

    @staticmethod
    def _stored(node: Node) -> PagesStored:
        assert node.parent is not None
        return PagesStored(node.parent.digests[-1] if node.parent.pages else b"", tuple(node.digests))

    def _maybe_evictable(self, node: Node) -> None:
        """Queue an unlocked leaf for eviction; drop a root that nothing needs."""
        if node.locks or node.children:
            return
        if node.parent is None:
            del self._roots[bytes(node.key)]
        elif not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (node.last_used, node))

    def _cut(self, leaf: Node, num_pages: int, evicted: list[int], digests: list[bytes]) -> None:
        """Take up to `num_pages` pages off the end of a leaf; an empty one leaves the tree."""
        assert leaf.parent is not None
        first_key = bytes(leaf.key[: self._width])
        keep = max(0, len(leaf.pages) - num_pages)
        evicted += leaf.pages[keep:]
        digests += leaf.digests[keep:]
        del leaf.key[keep * self._width :], leaf.pages[keep:], leaf.digests[keep:]
        if not keep:
            del leaf.parent.children[first_key]
            self._maybe_evictable(leaf.parent)
