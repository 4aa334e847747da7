"""Which kernels the time of one piece of work goes to, on a GPU.

python -m bench.step_profile --work prefill-1x8192,decode-8x1024 --json

The engine runs the work once to warm up and once under torch's profiler. Printed: kernels by their total time, how much
of the wall time the device was busy, and the longest pause between two kernels. The last line is one JSON object.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
import typer
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.engine import GPU_STEP_TOKENS, GPU_WORK, Work, choose, prompts_of
from bench.engine_driver import EngineDriver
from bench.shapes import SHAPES, write_shape
from engine.runtime.build import build_engine
from engine.runtime.config import EngineConfig
from engine.server.heap import keep_what_is_loaded


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel."""

    name: str
    count: int
    total_us: float


@dataclass(frozen=True)
class Profile:
    """One profiled run."""

    work: str
    span_ms: float
    """From the first kernel's begin to the last one's end."""
    busy_share: float
    """Of the span, the time in which some kernel or copy ran."""
    longest_pause_us: float
    pause_between: tuple[str, str]
    """The kernels before and after it."""
    kernels: tuple[KernelTime, ...]
    """By their total time, the largest first."""


def summarize_spans(work: str, spans: Iterable[tuple[str, float, float]], top: int) -> Profile:
    """`spans`: name, begin and end in us of everything that ran on the device; overlaps count once."""
    ordered = sorted(spans, key=lambda span: span[1])
    totals: dict[str, list[float]] = defaultdict(list)
    busy_us, pause_us, reached_us, latest, between = 0.0, 0.0, ordered[0][1], "", ("", "")
    for name, begin_us, end_us in ordered:
        totals[name].append(end_us - begin_us)
        if begin_us - reached_us > pause_us:
            pause_us, between = begin_us - reached_us, (latest, name)
        busy_us += max(0.0, end_us - max(begin_us, reached_us))
        reached_us, latest = max(reached_us, end_us), name
    span_us = reached_us - ordered[0][1]
    kernels = sorted((KernelTime(name, len(us), sum(us)) for name, us in totals.items()), key=lambda k: -k.total_us)
    return Profile(work, span_us / 1e3, busy_us / span_us, pause_us, between, tuple(kernels[:top]))


def profile_work(work: Work, driver: EngineDriver, vocab_size: int, top: int) -> Profile:
    """Warm up with other prompts of the same lengths, then profile one run."""
    rng = torch.Generator().manual_seed(crc32(work.name.encode()))
    for measured in (False, True):
        prompts = prompts_of(work, vocab_size, rng)
        if work.num_cached:
            driver.run([prompt[: work.num_cached] for prompt in prompts], 1)
        if not measured:
            driver.run(prompts, work.num_new)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        driver.run(prompts, work.num_new)
        torch.cuda.synchronize()
    events = [event for event in recorded.events() or () if event.device_type == DeviceType.CUDA]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in events]
    return summarize_spans(work.name, spans, top)


def show(found: Profile) -> None:
    """A table for a person."""
    print(
        f"{found.work}: {found.span_ms:.2f} ms, busy {found.busy_share:.1%}, "
        f"longest pause {found.longest_pause_us:.0f} us between {' and '.join(found.pause_between)}"
    )
    for kernel in found.kernels:
        print(f"  {kernel.total_us / 1e3:9.3f} ms {kernel.count:6d} x {kernel.name[:100]}", flush=True)


def profile_shape(shape: str, chosen: Sequence[Work], top: int) -> list[Profile]:
    """One profile for each work."""
    facts, found = SHAPES[shape], []
    config = EngineConfig("", device="cuda", random_weights=True, dtype=facts["dtype"], max_step_tokens=GPU_STEP_TOKENS)
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as name:
        write_shape(shape, Path(name))
        engine = build_engine(replace(config, model=name))
    keep_what_is_loaded()
    driver = EngineDriver(engine)
    for work in chosen:
        found.append(profile_work(work, driver, facts["vocab_size"], top))
        show(found[-1])
    engine.close()
    return found


def main(
    work: str = "prefill-1x8192,decode-1x1024,decode-8x1024,decode-64x1024",
    model_shape: str = "llama-8b",
    top: int = 16,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Profile pieces of work of bench.engine on the current GPU."""
    found = profile_shape(model_shape, choose(work, GPU_WORK), top)
    if as_json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "profiles": [asdict(each) for each in found]}))


if __name__ == "__main__":
    typer.run(main)
