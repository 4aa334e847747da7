"""What the prefix cache's radix tree costs: `python -m bench.prefix_tree --json`.

One long prompt and others that leave it after each `--run-tokens`, as the turns of a conversation do: looking it up
walks a node for each. Lookups are medians of single calls; what a page costs to insert (digest and event included)
and to evict is processor time over many pages. All in microseconds.
"""

import argparse
import json
import random
import sys
import time
from array import array
from collections.abc import Callable

from bench.report import percentile
from engine.core.radix_tree import Node, RadixTree

TARGET_LOOKUP_US = 100.0
"""For 8,192 tokens at page 64."""


def timed_us(call: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Median and 99th percentile of single calls."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
    return {"p50": round(percentile(times, 50), 2), "p99": round(percentile(times, 99), 2)}


def forked_prompts(num_tokens: int, run_tokens: int, rng: random.Random) -> list["array[int]"]:
    """One long prompt, and one that leaves it at the end of each run: the long one is cut into that many nodes."""
    main = [rng.randrange(100_000) for _ in range(num_tokens)]
    forks = [[*main[:cut], *(rng.randrange(100_000) for _ in range(256))] for cut in range(0, num_tokens, run_tokens)]
    return [array("i", tokens) for tokens in (main, *forks)]


def store(tree: RadixTree, tokens: "array[int]", page_size: int, first_page: int) -> Node:
    """Insert the full pages of a prompt, as a request's pages enter at its end."""
    node, found = tree.match(b"", tokens.tobytes(), len(tokens))
    width = page_size * tokens.itemsize
    data = tokens.tobytes()[len(found) * width : len(tokens) // page_size * width]
    node, _ = tree.insert(node, data, list(range(first_page, first_page + len(data) // width)))
    return node


def measure(page_size: int, num_tokens: int, run_tokens: int, repetitions: int) -> dict[str, object]:
    """Costs at one page size."""
    rng = random.Random(page_size)
    tree = RadixTree(page_size, "bench")
    prompts = forked_prompts(num_tokens, run_tokens, rng)
    for tokens in prompts:
        store(tree, tokens, page_size, tree.num_pages)
    longest = prompts[0]
    lookup = timed_us(lambda: tree.match(b"", longest.tobytes(), num_tokens), repetitions)
    unknown = array("i", [rng.randrange(100_000) for _ in range(num_tokens)])
    miss = timed_us(lambda: tree.match(b"", unknown.tobytes(), num_tokens), repetitions)
    node, _ = tree.match(b"", longest.tobytes(), num_tokens)

    def lock_and_unlock() -> None:
        tree.lock(node)
        tree.unlock(node)

    locks = timed_us(lock_and_unlock, repetitions)
    insert_us, evict_us = per_page(page_size, num_tokens, rng, repetitions // 10 + 1)
    return {
        "page_size": page_size,
        "stored_pages": tree.num_pages,
        "lookup_us": lookup["p50"],
        "lookup_p99_us": lookup["p99"],
        "miss_us": miss["p50"],
        "lock_unlock_us": locks["p50"],
        "insert_us_per_page": insert_us,
        "evict_us_per_page": evict_us,
    }


def per_page(page_size: int, num_tokens: int, rng: random.Random, num_prompts: int) -> tuple[float, float]:
    """Insert unrelated prompts (digests and events included), then evict them page by page."""
    tree = RadixTree(page_size, "bench")
    prompts = [array("i", [rng.randrange(100_000) for _ in range(num_tokens)]) for _ in range(num_prompts)]
    begin = time.process_time()
    for tokens in prompts:
        store(tree, tokens, page_size, tree.num_pages)
    inserted = time.process_time()
    num_pages = tree.num_pages
    tree.drain_events()
    evict_begin = time.process_time()
    while tree.evict(1):
        pass
    evicted = time.process_time()
    return round((inserted - begin) / num_pages * 1e6, 3), round((evicted - evict_begin) / num_pages * 1e6, 3)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefix_tree", description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--run-tokens", type=int, default=512, help="tokens between two forks of the long prompt")
    parser.add_argument("--page-size", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the result. Returns 0."""
    args = arguments(argv)
    rows = [measure(page_size, args.tokens, args.run_tokens, args.repetitions) for page_size in args.page_size]
    at_64 = next((row["lookup_us"] for row in rows if row["page_size"] == 64), None)
    report = {"tokens": args.tokens, "lookup_us": at_64, "target_lookup_us": TARGET_LOOKUP_US, "pages": rows}
    if args.json:
        print(json.dumps(report))
        return 0
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
