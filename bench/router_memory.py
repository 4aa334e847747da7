"""What the prefix index costs in memory: `python -m bench.router --part memory`.

Workers with many pages each tell the index of them, in runs of a request's pages as their caches do. A part of the
pages, system prompts, is the same on all workers; the others are on one each, which is the worst case. Bytes are the
growth of the process over entries, a worker's page being one entry. Then the same with a bound on each worker, which
is what keeps a large service within its memory: beyond it the index forgets what was stored longest ago, not the
first pages of prompts.
"""

import gc
import random
import time
from dataclasses import asdict, dataclass

import psutil

from router.prefix_index import PrefixIndex

RUN_PAGES = 32
"""Pages of one stored run: a prompt of 2,048 tokens at page 64."""


@dataclass(frozen=True, slots=True)
class MemorySizes:
    """How large the service is."""

    workers: int = 1000
    pages: int = 100_000
    """Of each worker."""
    shared: int = 2_000
    """Of those, pages that all workers hold."""


def measure(sizes: MemorySizes, bound: int, seed: int) -> dict[str, object]:
    """The whole part: without a bound that matters, then with `bound` pages a worker."""
    return {
        "sizes": asdict(sizes),
        "whole": _fill(sizes, sizes.pages, seed),
        "bounded": _fill(sizes, bound, seed),
    }


def _fill(sizes: MemorySizes, bound: int, seed: int) -> dict[str, object]:
    gc.collect()
    process, chance = psutil.Process(), random.Random(seed)
    before = process.memory_info().rss
    index = PrefixIndex(bound)
    shared = [chance.getrandbits(60) for _ in range(sizes.shared)]
    started_s = time.process_time()
    for _ in range(sizes.workers):
        slot = index.add_worker(sizes.pages)
        own = (chance.getrandbits(60) for _ in range(sizes.pages - sizes.shared))
        _store(index, slot, shared)
        _store(index, slot, list(own))
    took_s = time.process_time() - started_s
    grown = process.memory_info().rss - before
    entries = sum(index.num_pages(slot) for slot in range(sizes.workers))
    return {
        "bound_pages_a_worker": bound,
        "entries": entries,
        "distinct_pages": len(index),
        "left_out": index.num_left_out,
        "bytes_per_entry": round(grown / entries, 1),
        "index_gib": round(grown / 2**30, 3),
        "rss_gib": round(process.memory_info().rss / 2**30, 3),
        "us_per_stored_page": round(took_s * 1e6 / (sizes.workers * sizes.pages), 2),
        "forget_worker_ms": _forget(index),
    }


def _store(index: PrefixIndex, slot: int, keys: list[int]) -> None:
    for start in range(0, len(keys), RUN_PAGES):
        run = keys[start : start + RUN_PAGES]
        index.store(slot, run, run[0])


def _forget(index: PrefixIndex) -> float:
    """A worker leaves: how long the event loop would stand still."""
    started_s = time.process_time()
    index.remove_worker(0)
    return round((time.process_time() - started_s) * 1e3, 1)
