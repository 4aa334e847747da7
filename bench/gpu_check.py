"""Everything that needs a GPU, stage by stage, each in a process of its own with a time limit; a table at the end.

python -m bench.gpu_check --out DIR                          all stages, some 20 minutes on one H100 or H200
python -m bench.gpu_check --out DIR --only attention-tests,fp8-tests

DIR gets one file of output a stage. Exit code 1 when a stage failed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail", "40")
ENGINE = ("-m", "bench.engine", "--device", "cuda", "--json", "--repeats", "3", "--work")
ATTENTION = ("-m", "bench.attention", "--json")
DECODE = "decode-1x1024,decode-8x1024,decode-64x1024"
SIZES_KIB = ("64", "256", "1024", "8192", "16384")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One command. `rows` finds the table in its last line, which is JSON."""

    name: str
    command: tuple[str, ...]
    limit_s: int
    rows: Callable[[dict[str, Any]], Rows] | None = None
    cold: bool = False
    """With an empty cache of compiled Triton kernels, as on a new machine."""


def _key(name: str) -> Callable[[dict[str, Any]], Rows]:
    return lambda said: list(said[name])


def _transfer(devices: tuple[str, str]) -> tuple[str, ...]:
    ends = ("--source-device", devices[0], "--device", devices[1])
    sizes = ("--total-mib", "512", "--page-kib", *SIZES_KIB)
    return ("-m", "bench.handoff", "--json", "--speed-only", "--transports", "nixl", *ends, *sizes)


def stages(num_gpus: int) -> list[Stage]:
    """In the order of what they tell most."""
    second = "cuda:1" if num_gpus > 1 else "cuda:0"
    fp8 = ("--engine", "quantization=fp8,kv_dtype=fp8_e4m3")
    work = _key("work")
    several = [
        Stage("tensor-parallel-tests", (*PYTEST, "tests/gpu/test_tensor_parallel.py"), 420),
        Stage("engine-tp", (*ENGINE, f"{DECODE},prefill-1x2048", "--engine", "tp_size=2"), 180, work),
        Stage("engine-tp-8", (*ENGINE, DECODE, "--engine", f"tp_size=2,{fp8[1]}"), 180, work),
    ]
    return [
        Stage("start-cold", (*ENGINE, "prefill-1x512"), 120, work, cold=True),
        Stage("fp8-tests", (*PYTEST, "tests/gpu/test_fp8.py"), 240),
        Stage("attention-tests", (*PYTEST, "tests/gpu/test_attention.py"), 420),
        Stage("engine-tests", (*PYTEST, "tests/gpu/test_engine.py"), 240),
        Stage("engine", (*ENGINE, f"{DECODE},prefill-1x2048"), 180, work),
        Stage("engine-weights-8", (*ENGINE, f"{DECODE},prefill-1x2048", "--engine", "quantization=fp8"), 180, work),
        Stage("engine-all-8", (*ENGINE, f"{DECODE},prefill-1x2048,extend-1x256", *fp8), 180, work),
        Stage("attention", ATTENTION, 300, _key("rows")),
        Stage(
            "attention-8",
            (*ATTENTION, "--kv-dtype", "float8_e4m3fn", "--backends", "triton,fa3", "--pages", "128"),
            120,
            _key("rows"),
        ),
        Stage("products-8", ("-m", "bench.kernels", "--json", "--fp8", "--rows", "1,8,32"), 180, _key("products")),
        *(several if num_gpus > 1 else []),
        Stage("transfer", _transfer(("cuda:0", second)), 180, _key("rows")),
    ]  # fmt: skip


def run_stage(stage: Stage, out: Path) -> tuple[str, float, Rows]:
    """What became of it, seconds, and its rows."""
    begin_s = time.monotonic()
    log = out / f"{stage.name}.log"
    environment = dict(os.environ) | ({"TRITON_CACHE_DIR": str(out / "triton")} if stage.cold else {})
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *stage.command],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=stage.limit_s,
                env=environment,
            )
            state = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            state = f"not done after {stage.limit_s} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    rows: Rows = []
    if stage.rows is not None and state == "ok":
        rows = stage.rows(json.loads(next(line for line in reversed(lines) if line.startswith("{"))))
    elif lines:
        rows = [{"last line": lines[-1][:160]}]
    return state, time.monotonic() - begin_s, rows


def short(row: dict[str, Any]) -> str:
    """One line of a table."""
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {str(value)[:60]}"
        for key, value in row.items()
        if key not in ("top", "tiles", "pages")
    )


def main(out: Path = Path("gpu_check"), only: str = "") -> None:
    """Run the stages and print what they say."""
    out.mkdir(parents=True, exist_ok=True)
    known = {stage.name: stage for stage in stages(torch.cuda.device_count())}
    chosen = [known[name] for name in only.split(",") if name] or list(known.values())
    print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}", flush=True)
    failed = False
    for stage in chosen:
        state, seconds, rows = run_stage(stage, out)
        failed |= state != "ok"
        print(f"== {stage.name}: {state}, {seconds:.0f} s", flush=True)
        for row in rows:
            print(f"   {short(row)}", flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    typer.run(main)
