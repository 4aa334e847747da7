"""What a router process costs: `python -m router` before workers that answer at once, and its processor time.

Two loads with few and with many tokens give milliseconds a request and microseconds a token; prompts of 100,000 token
ids give what length costs. Processor time is the router process's own, all threads, user and system, between a load's
first request and its last answer. sglang-router
gets the same requests with the same number of workers where it can be imported; it passes text through, Baton
also turns it into token ids and back.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from os import environ
from pathlib import Path
from typing import Any

import psutil

from bench.report import percentile
from bench.router_load import LoadResult, LoadSpec
from bench.router_peer import missing, serve_peer
from bench.router_workers import KEY
from engine.models.builtin import FOLDER
from engine.server.config import CLUSTER_KEY_VARIABLE

MODEL = "bench"
MAX_MODEL_LEN = 131_072
LONG_PROMPT = 100_000
TARGET_LONG_MS = 10.0
NUM_WORKERS = 2
END_S = 10.0


@dataclass(frozen=True, slots=True)
class ProcessSizes:
    """How much load. The defaults take about two minutes."""

    concurrency: int = 32
    num_prompt: int = 256
    few: int = 8
    many: int = 136
    requests_few: int = 512
    requests_many: int = 128
    requests_long: int = 20
    requests_alone: int = 200


def sizes_of(scale: float) -> ProcessSizes:
    """So many times as many requests as by default, at least one a client."""
    full = ProcessSizes()
    counts = {
        name: max(full.concurrency, round(getattr(full, name) * scale)) for name in ("requests_few", "requests_many")
    }
    alone = {name: max(2, round(getattr(full, name) * scale)) for name in ("requests_long", "requests_alone")}
    return replace(full, **counts, **alone)


@dataclass(frozen=True, slots=True)
class RouterProcess:
    """A router with its workers, all in their own processes."""

    url: str
    grpc: str
    workers: tuple[str, ...]
    process: psutil.Process

    def cpu_s(self) -> float:
        """Its processor time so far."""
        return cpu_s_of(self.process.pid)


def cpu_s_of(pid: int) -> float:
    """Processor time of all threads of a process so far, user and system, in nanoseconds' steps where /proc has ticks.

    The clock of another process as clock_getcpuclockid(3) names it on Linux.
    """
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def serve_router(
    roles: Sequence[Sequence[str]], policy: str, worker_flags: Sequence[str] = (), router_flags: Sequence[str] = ()
) -> Iterator[RouterProcess]:
    """One worker for each entry of `roles`, and a router in front of them. Raises RuntimeError with the log."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-router-bench-")))
        log = stack.enter_context((folder / "log").open("w+"))
        shared = dict(environ) | {CLUSTER_KEY_VARIABLE: KEY}

        def start(*words: str) -> tuple[dict[str, Any], int]:
            command = [sys.executable, "-m", *words, "--log-level", "WARNING"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=shared)
            stack.callback(_end, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise RuntimeError(f"{command} ended with {process.wait()}:\n{log.read()}")
            return json.loads(line), process.pid

        workers = tuple(
            start("bench.router_workers", "--id", f"w{number}", "--roles", *each, *worker_flags)[0]["address"]
            for number, each in enumerate(roles)
        )
        named = [word for address in workers for word in ("--worker", address)]
        model = ["--model", str(_write_model(folder / "model")), "--model-name", MODEL]
        doors, pid = start(
            "router", *model, *named, "--policy", policy, "--port", "0", "--grpc-port", "0", *router_flags
        )
        yield RouterProcess(
            f"http://127.0.0.1:{doors['port']}", f"127.0.0.1:{doors['grpc_port']}", workers, psutil.Process(pid)
        )


def _write_model(folder: Path) -> Path:
    """The built-in tokenizer with a context that long prompts fit in."""
    folder.mkdir()
    config = json.loads((FOLDER / "config.json").read_text()) | {"max_position_embeddings": MAX_MODEL_LEN}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder / name)
    return folder


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def send(spec: LoadSpec, pid: int | None = None) -> tuple[LoadResult, float]:
    """Run one load in a process of its own; with `pid`, also that process's seconds of processor time from the first
    request's beginning to the last one's end. Raises RuntimeError when a request failed.
    """
    command = [sys.executable, "-m", "bench.router_load", json.dumps(asdict(spec))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as load:
        assert load.stdin is not None and load.stdout is not None and load.stderr is not None
        if not load.stdout.readline():
            raise RuntimeError(f"the load ended with {load.wait()}:\n{load.stderr.read()}")
        before_s = cpu_s_of(pid) if pid is not None else 0.0
        load.stdin.write("begin\n")
        load.stdin.flush()
        line = load.stdout.readline()
        spent_s = cpu_s_of(pid) - before_s if pid is not None else 0.0
        if not line:
            raise RuntimeError(f"the load ended with {load.wait()}:\n{load.stderr.read()}")
    result = LoadResult(**json.loads(line))
    if result.failed:
        raise RuntimeError(
            f"{result.failed} of {spec.num_requests} requests failed, the first with {result.first_error}"
        )
    return result, spent_s


@dataclass(frozen=True, slots=True)
class Bench:
    """Loads on one router."""

    process: psutil.Process
    spec: LoadSpec
    """Where and how; lengths and counts are replaced."""
    sizes: ProcessSizes

    def row(self) -> dict[str, object]:
        """ms a request and us a token, from few and many tokens."""
        sizes = self.sizes
        self.cpu_ms(sizes.few, sizes.requests_few // 4, sizes.num_prompt)  # first requests import and connect
        few_ms, few = self.cpu_ms(sizes.few, sizes.requests_few, sizes.num_prompt)
        many_ms, many = self.cpu_ms(sizes.many, sizes.requests_many, sizes.num_prompt)
        token_ms = (many_ms - few_ms) / (sizes.many - sizes.few)
        return {
            "cpu_ms_per_request": round(few_ms - token_ms * sizes.few, 3),
            "cpu_us_per_token": round(token_ms * 1e3, 2),
            "requests_per_s_one_core": round(1e3 / few_ms, 1),
            "requests_per_s_seen": round(sizes.requests_few / few.wall_s, 1),
            "tokens_per_chunk": round(many.tokens / max(many.chunks, 1), 2),
            "ttft_ms": {f"p{p}": round(percentile(few.ttft_ms, p), 2) for p in (50, 99)},
        }

    def cpu_ms(self, num_new: int, num_requests: int, num_prompt: int, alone: bool = False) -> tuple[float, LoadResult]:
        """Processor time of one request of this load, over all of its requests."""
        concurrency = 1 if alone else self.sizes.concurrency
        spec = replace(
            self.spec,
            num_new=num_new,
            num_requests=num_requests,
            num_prompt=num_prompt,
            concurrency=concurrency,
            seed=self.spec.seed + num_new + num_prompt,
        )
        result, spent_s = send(spec, self.process.pid)
        return spent_s * 1e3 / num_requests, result


def _spec(target: str, door: str, seed: int) -> LoadSpec:
    return LoadSpec(target, door, MODEL, num_requests=1, concurrency=1, num_prompt=1, num_new=1, seed=seed)


def wait_for_pairs(router: RouterProcess) -> None:
    """Workers join and prove their pairs; requests before that would stay on one worker."""
    send(replace(_spec(router.url, "http", 999), num_requests=50, num_prompt=64, num_new=2))


def measure(sizes: ProcessSizes, seed: int) -> dict[str, object]:
    """The whole part."""
    report: dict[str, object] = {"sizes": asdict(sizes), "workers": NUM_WORKERS, "target_long_ms": TARGET_LONG_MS}
    with serve_router([["prefill", "decode"]] * NUM_WORKERS, "cost") as router:
        wait_for_pairs(router)
        for door, target in (("http", router.url), ("grpc", router.grpc), ("text", router.url)):
            bench = Bench(router.process, _spec(target, door, seed), sizes)
            report[f"whole_{door}"] = bench.row()
            if door != "text":
                long_ms, long = bench.cpu_ms(1, sizes.requests_long, LONG_PROMPT, alone=True)
                report[f"long_{door}"] = {
                    "cpu_ms": round(long_ms, 2),
                    "ttft_p50_ms": round(percentile(long.ttft_ms, 50), 2),
                }
        report["added"] = added_latency(router, sizes, seed)
    with serve_router([["prefill"], ["decode"]], "cost_always_hand_over") as router:
        wait_for_pairs(router)
        report["handed_over_http"] = Bench(router.process, _spec(router.url, "http", seed), sizes).row()
    return report | {"sglang_router": peer(sizes, seed)}


def added_latency(router: RouterProcess, sizes: ProcessSizes, seed: int) -> dict[str, float]:
    """Of a first token, one request at a time: through each door, and straight from a worker."""
    rows: dict[str, float] = {}
    ttft: dict[str, list[float]] = {}
    for door, target in (("worker", router.workers[0]), ("http", router.url), ("grpc", router.grpc)):
        spec = replace(_spec(target, door, seed), num_requests=sizes.requests_alone, num_prompt=sizes.num_prompt)
        ttft[door] = send(spec)[0].ttft_ms
    for p in (50, 99):
        straight = percentile(ttft["worker"], p)
        rows[f"worker_p{p}_ms"] = round(straight, 2)
        rows |= {f"{door}_added_p{p}_ms": round(percentile(ttft[door], p) - straight, 2) for door in ("http", "grpc")}
    return rows


def peer(sizes: ProcessSizes, seed: int) -> dict[str, object]:
    """sglang-router on the same words; why not, in words, where it cannot run."""
    if why := missing():
        return {"ran": why}
    with tempfile.TemporaryDirectory(prefix="baton-router-peer-") as folder:
        try:
            with serve_peer(NUM_WORKERS, Path(folder)) as router:
                bench = Bench(psutil.Process(router.pid), _spec(router.url, "text", seed), sizes)
                return {"ran": "ran"} | bench.row()
        except RuntimeError as error:
            return {"ran": f"did not run: {error}"}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield "process:"
    for name, value in report.items():
        yield f"  {name}: {value}"
