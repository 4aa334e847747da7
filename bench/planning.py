"""What the engine core costs the processor: `python -m bench.planning --json`.

The device is replaced by an executor that draws the same token for every row at once, so what is left is planning and
committing a decode step of many rows, and admitting prompts that are new or cached. Medians in microseconds.
"""

import argparse
import json
import math
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable

from bench.report import percentile
from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.types import Request, Sampling, StepOutput, StepPlan

PAGE_SIZE = 64
TOKEN = 7


class InstantExecutor:
    """Draws TOKEN everywhere, in no time."""

    def __init__(self) -> None:
        self._launched: deque[StepPlan] = deque()

    def launch(self, plan: StepPlan) -> None:
        """See Executor."""
        self._launched.append(plan)

    @property
    def ready(self) -> bool:
        """See Executor: whoever collects has waited."""
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        """See Executor: nobody waits."""

    def collect(self) -> StepOutput:
        """See Executor."""
        plan = self._launched.popleft()
        return StepOutput(plan.step_id, [TOKEN] * len(plan.ids))

    def close(self) -> None:
        """See Executor."""


def make_core(num_rows: int, num_pages: int) -> EngineCore:
    """A core with room for all rows at once."""
    config = SchedulerConfig(PAGE_SIZE, num_pages, 1 << 20, max_step_tokens=8192, max_rows=num_rows, max_queued=1 << 16)
    return EngineCore(config, InstantExecutor())


def make_request(id: int, tokens: "array[int]", max_tokens: int) -> Request:
    """With a stop token that never comes."""
    return Request(id, tokens, len(tokens), Sampling(max_tokens=max_tokens, stop_token_ids=(1, 2)), 0.0, math.inf)


def decode(num_rows: int, num_steps: int) -> dict[str, float]:
    """Steps in which every row draws one token, pages appended as they fill."""
    core = make_core(num_rows, num_rows * (num_steps // PAGE_SIZE + 8))
    for id in range(num_rows):
        core.submit(make_request(id, array("i", [10 + id] * 100), num_steps + 100))
    for _ in range(num_rows * 100 // 8192 + 10):  # the prompts, and some steps to warm up
        core.step(0.0)
    plan_us, commit_us = [], []
    for _ in range(num_steps):
        begin = time.perf_counter()
        core.launch(0.0)
        launched = time.perf_counter()
        rows = len(core.commit().ids)
        commit_us.append((time.perf_counter() - launched) * 1e6)
        plan_us.append((launched - begin) * 1e6)
        assert rows == num_rows, "not a pure decode step"
    return {
        "rows": num_rows,
        "plan_us": round(percentile(plan_us, 50), 1),
        "commit_us": round(percentile(commit_us, 50), 1),
    }


def admit(num_tokens: int, repetitions: int) -> dict[str, float]:
    """From submit to a plan that holds the request: a prompt that nobody has seen, then the same one again."""
    core = make_core(8, (num_tokens // PAGE_SIZE + 2) * (repetitions + 1))
    times: dict[str, list[float]] = {"new_us": [], "cached_us": []}
    for repetition in range(repetitions):
        tokens = array("i", [repetition, *range(1, num_tokens)])
        for again, name in enumerate(times):
            begin = time.perf_counter()
            core.submit(make_request(2 * repetition + again, tokens, 1))
            core.launch(0.0)
            times[name].append((time.perf_counter() - begin) * 1e6)
            while core.has_work:
                core.step(0.0)
    return {"tokens": num_tokens} | {name: round(percentile(values, 50), 1) for name, values in times.items()}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.planning", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompt-tokens", type=int, default=8192)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the result. Returns 0."""
    args = arguments(argv)
    report = {
        "page_size": PAGE_SIZE,
        "decode": [decode(num_rows, args.steps) for num_rows in args.rows],
        "admission": admit(args.prompt_tokens, 50),
    }
    if args.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:10} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
