"""The prefix index beside Dynamo's RadixTree (PyPI ai-dynamo-runtime), on the same events and the same look-ups.

Workers with production radix trees of bounded size serve a trace; what they store and evict goes to both indexes.
Now and then a prompt is looked up in both before it is served, in turns which one is first. A look-up is the call that
gives every worker's number of leading pages, in values that Python code can read; `tokens` rows include making the
page hashes from token ids. Both must give the same answer.
"""

import json
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.report import percentile
from bench.router_trace import TraceRequest
from engine.core.digest import page_digests, page_keys, root_digest
from engine.core.messages import KVEvent, PagesRemoved, PagesStored
from engine.core.radix_tree import RadixTree
from router.prefix_index import PrefixIndex

MODEL = "bench"
POOL_TOKENS = 480_000
"""Of one worker: an 8B model's KV in 60 GiB."""
ELSEWHERE = 0.25
"""How often a request is served by any worker instead of the one that holds most of it: prefixes get copies."""
TARGET_RATIO = 0.6


class Peer(Protocol):
    """Another implementation of the index."""

    def hashes(self, tokens: "array[int]") -> Sequence[int]:
        """Its names of the full pages."""

    def apply(self, worker: int, event: KVEvent) -> None:
        """One event of one worker."""

    def match(self, hashes: Sequence[int]) -> dict[int, int]:
        """Worker -> leading pages that it holds."""


class DynamoPeer:
    """`dynamo._core.RadixTree` through its Python binding. Raises ImportError when the package is not there."""

    def __init__(self, page_size: int) -> None:
        from dynamo._core import RadixTree as DynamoTree  # type: ignore[import-not-found]  # optional
        from dynamo._core import compute_block_hash_for_seq

        self._tree: Any = DynamoTree()
        self._hash: Callable[[list[int], int], list[int]] = compute_block_hash_for_seq
        self._page_size = page_size
        self._page_hashes: dict[bytes, int] = {}
        """Digest of a page, as workers name it -> hash of its own tokens, as this tree finds it."""
        self._num_events = 0

    def learn(self, digests: Sequence[bytes], hashes: Sequence[int]) -> None:
        """What workers call pages `hashes` in their events."""
        self._page_hashes.update(zip(digests, hashes, strict=True))

    def hashes(self, tokens: "array[int]") -> list[int]:
        """Hashes of the full pages' own tokens."""
        return self._hash(tokens.tolist(), self._page_size)

    def apply(self, worker: int, event: KVEvent) -> None:
        """One event, as JSON: the binding takes nothing else."""
        self._num_events += 1
        if isinstance(event, PagesStored):
            blocks = [{"block_hash": _number(d), "tokens_hash": self._page_hashes[d]} for d in event.digests]
            data: dict[str, Any] = {
                "stored": {"parent_hash": _number(event.parent) if event.parent else None, "blocks": blocks}
            }
        else:
            assert isinstance(event, PagesRemoved), "workers are not cleared here"
            data = {"removed": {"block_hashes": [_number(digest) for digest in event.digests]}}
        self._tree.apply_event(worker, json.dumps({"event_id": self._num_events, "data": data}).encode())

    def match(self, hashes: Sequence[int]) -> dict[int, int]:
        """Reading `scores` is part of the call: before that there is nothing to route by."""
        scores: dict[Any, int] = self._tree.find_matches(hashes).scores
        return scores


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


@dataclass(slots=True)
class _Times:
    """Microseconds of paired look-ups. Mutable."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """Percentiles of both, and the median of the pairs' ratios."""
        row: dict[str, object] = {f"p{p}_us": round(percentile(self.ours, p), 1) for p in (50, 99)}
        if self.peer:
            ratios = [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]
            row |= {f"dynamo_p{p}_us": round(percentile(self.peer, p), 1) for p in (50, 99)}
            row["ratio"] = round(statistics.median(ratios), 3)
        return row


class IndexBench:
    """One number of workers: their caches, both indexes, and the times of look-ups."""

    def __init__(self, num_workers: int, page_size: int, seed: int, peer: DynamoPeer | None) -> None:
        self._page_size = page_size
        self._rng = random.Random(seed)
        self._peer = peer
        self._max_pages = POOL_TOKENS // page_size
        self._trees = [RadixTree(page_size, MODEL) for _ in range(num_workers)]
        self._root = root_digest(b"", MODEL)
        self.index = PrefixIndex()
        for _ in self._trees:
            self.index.add_worker(2 * self._max_pages)
        self.lookups, self.from_tokens = _Times(), _Times()
        self.num_pages_looked_up: list[int] = []
        self._kept: list[tuple[list[bytes], Sequence[int]]] = []

    def run(self, requests: Sequence[TraceRequest], lookup_every: int, skip: int) -> dict[str, object]:
        """Serve all; look up every so many requests after the first `skip`. Returns one row."""
        for number, request in enumerate(requests):
            tokens = request.tokens()
            usable = (len(tokens) - 1) // self._page_size
            digests = page_digests(self._root, tokens, self._page_size)
            hashes: Sequence[int] = ()
            if self._peer is not None:
                hashes = self._peer.hashes(tokens)
                self._peer.learn(digests, hashes)
            if number >= skip and number % lookup_every == 0 and usable:
                self._look_up(tokens[: usable * self._page_size], digests[:usable], hashes[:usable], number)
            self._serve(tokens, digests)
        row: dict[str, object] = {"workers": len(self._trees), "page_size": self._page_size}
        row |= {"lookups": len(self.lookups.ours), "median_pages": statistics.median(self.num_pages_looked_up)}
        row |= {"indexed_pages": len(self.index)}
        row |= {"lookup": self.lookups.row(), "tokens": self.from_tokens.row(), "cpu": self._cpu_row()}
        return row

    def _serve(self, tokens: "array[int]", digests: list[bytes]) -> None:
        runs = self.index.match(digests)
        place = max(runs, key=lambda slot: (runs[slot], -slot)) if runs else None
        if place is None or self._rng.random() < ELSEWHERE:
            place = self._rng.randrange(len(self._trees))
        tree, data = self._trees[place], tokens.tobytes()
        node, found = tree.match(b"", data, self._max_pages)
        width = self._page_size * tokens.itemsize
        num_pages = min(len(data) // width, self._max_pages)
        tree.lock(node)
        tree.evict(max(0, tree.num_pages + num_pages - len(found) - self._max_pages))
        tree.insert(node, data[len(found) * width : num_pages * width], list(range(num_pages - len(found))))
        tree.unlock(node)
        for event in tree.drain_events():
            self._apply(place, event)

    def _apply(self, worker: int, event: KVEvent) -> None:
        if isinstance(event, PagesStored):
            self.index.store(worker, page_keys(event.digests))
        elif isinstance(event, PagesRemoved):
            self.index.remove(worker, page_keys(event.digests))
        if self._peer is not None:
            self._peer.apply(worker, event)

    def _look_up(self, tokens: "array[int]", digests: list[bytes], hashes: Sequence[int], turn: int) -> None:
        index, peer = self.index, self._peer
        self.num_pages_looked_up.append(len(digests))
        self._kept.append((digests, hashes))
        ours: list[Callable[[], object]] = [
            lambda: index.match(digests),
            lambda: index.match(page_digests(self._root, tokens, self._page_size)),
        ]
        times = (self.lookups, self.from_tokens)
        if peer is None:
            for time_of, call in zip(times, ours, strict=True):
                time_of.ours.append(_timed_us(call))
            return
        theirs: list[Callable[[], object]] = [lambda: peer.match(hashes), lambda: peer.match(peer.hashes(tokens))]
        for time_of, mine, other in zip(times, ours, theirs, strict=True):
            for is_mine in (True, False) if turn % 2 else (False, True):
                (time_of.ours if is_mine else time_of.peer).append(_timed_us(mine if is_mine else other))
        self._check_same(index.match(digests), peer.match(hashes))

    @staticmethod
    def _check_same(ours: dict[int, int], peer: dict[Any, int]) -> None:
        by_worker = {key[0] if isinstance(key, tuple) else key: pages for key, pages in peer.items() if pages}
        assert ours == by_worker, "the two indexes differ on who holds what"

    def _cpu_row(self) -> dict[str, float]:
        """Processor time of a look-up, all threads of the process: what waiting for a thread does not blur."""
        row = {"us": _cpu_us(self.index.match, [digests for digests, _ in self._kept])}
        if self._peer is not None:
            row["dynamo_us"] = _cpu_us(self._peer.match, [hashes for _, hashes in self._kept])
            row["ratio"] = row["us"] / row["dynamo_us"]
        return {name: round(value, 3) for name, value in row.items()}


def _timed_us(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e3


def _cpu_us(call: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    rounds = max(1, 2000 // len(arguments))
    begin = time.process_time()
    for _ in range(rounds):
        for argument in arguments:
            call(argument)
    return (time.process_time() - begin) / (rounds * len(arguments)) * 1e6


def compare(
    requests: Sequence[TraceRequest], workers: Sequence[int], page_size: int, num_lookups: int, seed: int
) -> dict[str, object]:
    """The whole part: one row for each number of workers. The peer's absence is said in words."""
    skip = len(requests) // 3
    every = max(1, (len(requests) - skip) // num_lookups)
    rows: list[dict[str, Any]] = []
    words = "ran"
    for num_workers in workers:
        try:
            peer: DynamoPeer | None = DynamoPeer(page_size)
        except ImportError as error:
            peer, words = None, f"did not run: dynamo._core cannot be imported ({error}); see PyPI ai-dynamo-runtime"
        rows.append(IndexBench(num_workers, page_size, seed, peer).run(requests, every, skip))
    report: dict[str, object] = {"dynamo": words, "target_ratio": TARGET_RATIO, "rows": rows}
    report["lookup_us"] = max(row["lookup"]["p50_us"] for row in rows)
    return report


def lines(report: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"index: Dynamo's RadixTree {report['dynamo']}"
    for row in report["rows"]:
        yield f"  {row}"
