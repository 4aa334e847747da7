"""The virtual-time campaign on all cores: seeds in, one report out."""

import gc
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import fields
from random import Random
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from simulator.campaign import Report, Verdict, Wrongs, run_seed

CHUNK_SEEDS = 10
MAX_SHOWN = 20

Failure = tuple[int, str]
"""A seed and what was wrong with it."""


def run_virtual(seeds: range, num_jobs: int, as_json: bool) -> int:
    """Play `seeds` in `num_jobs` processes (0: one a core) and print what they showed. Returns the exit code."""
    started_s = monotonic()
    report, failures = Report(), list[Failure]()
    with _progress(len(seeds), visible=not as_json) as advance:
        for part, wrong in _play(seeds, num_jobs or os.cpu_count() or 1):
            report.add(part)
            failures += wrong
            advance(CHUNK_SEEDS)
    summary = summarize(report, seeds, failures, monotonic() - started_s)
    for seed, what in sorted(failures)[:MAX_SHOWN]:
        print(f"seed {seed}: {what}", file=sys.stderr)
    print(json.dumps(summary, indent=None if as_json else 2))
    return 1 if report.wrong else 0


def summarize(report: Report, seeds: range, failures: Sequence[Failure], seconds: float) -> dict[str, Any]:
    """The object of the last line."""
    counts = [(each.name, getattr(report, each.name)) for each in fields(report) if each.name != "silences"]
    return {
        "first_seed": seeds.start,
        "seeds": len(seeds),
        **{name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in counts},
        "longest_silence_s": report.longest_silence_s,
        "failing_seeds": [seed for seed, _ in sorted(failures)[:MAX_SHOWN]],
        "seconds": round(seconds, 3),
        "handoffs_per_s": round(report.handoffs / seconds, 1),
    }


def play_chunk(seeds: range) -> tuple[Report, list[Failure]]:
    """What these seeds showed together, and what was wrong with which."""
    report, failures = Report(), list[Failure]()
    with _rare_collection():
        for seed in seeds:
            verdict = run_seed(seed, Random(seed))
            report.add(verdict.report)
            if verdict.report.wrong:
                failures.append((seed, describe(verdict)))
    return report, failures


@contextmanager
def _rare_collection() -> Iterator[None]:
    """A world is full of cycles and small: collecting them all the time costs a fifth of the run."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def describe(verdict: Verdict) -> str:
    """What was wrong, in words."""
    counts = {each.name: getattr(verdict.report, each.name) for each in fields(Wrongs)}
    found = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    return f"{found} ({verdict.message})" if verdict.message else found


def _play(seeds: range, num_jobs: int) -> Iterator[tuple[Report, list[Failure]]]:
    chunks = [seeds[start : start + CHUNK_SEEDS] for start in range(0, len(seeds), CHUNK_SEEDS)]
    if num_jobs == 1 or len(chunks) == 1:
        yield from map(play_chunk, chunks)
        return
    with ProcessPoolExecutor(num_jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(play_chunk, chunk) for chunk in chunks]):
            yield done.result()


@contextmanager
def _progress(num_seeds: int, visible: bool) -> Iterator[Any]:
    columns = (TextColumn("seeds"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task("seeds", total=num_seeds)
        yield lambda count: progress.advance(task, count)
