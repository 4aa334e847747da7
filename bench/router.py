"""The router on a recorded trace: `python -m bench.router --trace TRACE.jsonl --json`.

Parts: `index` (look-ups beside Dynamo's RadixTree), `process` (processor time of a router process, sglang-router
beside it), `policies` (the trace in virtual time, with an oracle) and, only when named, `memory` (what the index of a
large service takes; needs no trace). Peers are optional: `pip install --no-deps
ai-dynamo-runtime sglang-router setproctitle orjson`; where one cannot run, the report says why.
The last line of --json is one object.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import router_index, router_memory, router_policies, router_process
from bench.router_trace import load_trace, whole_conversations
from router.policies.registry import POLICY_NAMES

PARTS = ("index", "process", "policies")
ALL_PARTS = (*PARTS, "memory")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.router", description=__doc__)
    flags.add_argument("--trace", type=Path, help="a file in the format of Mooncake's traces")
    flags.add_argument("--part", default=",".join(PARTS), help=f"of {','.join(ALL_PARTS)}; several with commas")
    flags.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64], help="of index and policies")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", action="store_true", help="print only one JSON object")
    index = flags.add_argument_group("index")
    index.add_argument("--index-requests", type=int, default=1500, help="from the trace's beginning")
    index.add_argument("--page-size", type=int, default=64)
    index.add_argument("--lookups", type=int, default=200)
    process = flags.add_argument_group("process")
    process.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    memory = flags.add_argument_group("memory")
    memory.add_argument("--memory-workers", type=int, default=1000)
    memory.add_argument("--memory-pages", type=int, default=100_000, help="of each worker")
    memory.add_argument("--memory-shared", type=int, default=2_000, help="of those, pages that all workers hold")
    memory.add_argument("--memory-bound", type=int, default=10_000, help="pages a worker of the bounded index")
    policies = flags.add_argument_group("policies")
    policies.add_argument("--first-request", type=int, default=0, help="where the slice of the trace begins")
    policies.add_argument("--requests", type=int, help="in the slice; all that follow when left out")
    policies.add_argument("--one-in", type=int, default=60, help="keep one in so many conversations, with all turns")
    policies.add_argument(
        "--rates", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="requests/s a pair of workers"
    )
    policies.add_argument("--policies", nargs="+", default=list(POLICY_NAMES), choices=POLICY_NAMES)
    args = flags.parse_args(argv)
    args.part = args.part.split(",")
    if unknown := set(args.part) - set(ALL_PARTS):
        flags.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if args.trace is None and {"index", "policies"} & set(args.part):
        flags.error("--trace is needed")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One entry a part, and the figures that sum them up; those of parts that were not asked for are null."""
    report: dict[str, Any] = {}
    if "index" in args.part:
        requests = load_trace(args.trace, 0, args.index_requests)
        report["index"] = router_index.compare(requests, args.workers, args.page_size, args.lookups, args.seed)
    if "process" in args.part:
        report["process"] = router_process.measure(router_process.sizes_of(args.scale), args.seed)
    if "memory" in args.part:
        sizes = router_memory.MemorySizes(args.memory_workers, args.memory_pages, args.memory_shared)
        report["memory"] = router_memory.measure(sizes, args.memory_bound, args.seed)
    if "policies" in args.part:
        requests = whole_conversations(load_trace(args.trace, args.first_request, args.requests), args.one_in)
        levels = [router_policies.Level(workers, rate) for workers in args.workers for rate in args.rates]
        report["policies"] = router_policies.compare(requests, levels, args.policies, args.seed)
    return report | _summary(report)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """Of a router process: requests that are handed over, HTTP. Of the others: the worst case measured."""
    handed_over = report.get("process", {}).get("handed_over_http", {})
    policies, index = report.get("policies", {}), report.get("index", {})
    return {
        "cpu_ms_per_request": handed_over.get("cpu_ms_per_request"),
        "cpu_us_per_token": handed_over.get("cpu_us_per_token"),
        "requests_per_s": handed_over.get("requests_per_s_one_core"),
        "lookup_us": index.get("lookup_us"),
        "hit_rate": policies.get("hit_rate"),
        "oracle_hit_rate": policies.get("oracle_hit_rate"),
        "hit_rate_vs_oracle": policies.get("hit_rate_vs_oracle"),
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """For people."""
    modules = {"index": router_index, "process": router_process, "policies": router_policies}
    for part, module in modules.items():
        if part in report:
            yield from module.lines(report[part])
    for name, value in report.items():
        if name not in modules:
            yield f"{name:24} {value}"


def main(argv: list[str] | None = None) -> int:
    """Prints the result. Returns 0."""
    args = arguments(argv)
    report = measure(args)
    print(json.dumps(report) if args.json else "\n".join(lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
