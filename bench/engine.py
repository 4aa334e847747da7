"""The engine alone, offline: milliseconds and tokens per second of prefill, extend, decode and whole batches.

python -m bench.engine --device cpu --json                  beside transformers' generate: same weights, batch, threads
python -m bench.engine --model-shape llama-8b --device cuda --json     beside the limits of one H200
python -m bench.engine --device cpu --work decode-16x256 --repeats 9
python -m bench.engine --device cuda --engine quantization=fp8,kv_dtype=fp8_e4m3      fields of EngineConfig
python -m bench.engine --model-shape llama-70b --device cuda --engine tp_size=2 --json      a worker of two ranks

Work is named kind-BATCHxTOKENS. Every repetition has fresh random prompts; a peer runs right before or after with the
same ones, and the ratio is the median over repetitions, so that a machine that slows down slows both. The last line is
one JSON object. On a GPU the first line is the start: seconds until the engine was built and warm, and what the first
request took then; `busy` is the share of steady decode that the device spent inside of graphs.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from zlib import crc32

import torch
import typer

from bench.engine_driver import EngineDriver, Timeline
from bench.engine_limits import Limits
from bench.engine_peer import TransformersPeer, write_random_checkpoint
from bench.shapes import SHAPES, write_shape
from engine.runtime.build import build_engine
from engine.runtime.config import EngineConfig, Formats, Launching, Parallel
from engine.server.heap import keep_what_is_loaded

CPU_KV_BYTES = 1 << 30
GPU_STEP_TOKENS = 8192


@dataclass(frozen=True)
class Work:
    """`batch` requests: `num_prompt` tokens each, after `num_cached` that the cache holds, then `num_new` drawn."""

    kind: str
    """prefill: until all have a first token. extend: the same over a cached prefix. decode: one step of all rows.
    batch: from submission to the last token."""
    batch: int
    num_prompt: int
    num_new: int = 1
    num_cached: int = 0
    target_ms: float | None = None

    @property
    def name(self) -> str:
        """As the command line names it."""
        return f"{self.kind}-{self.batch}x{self.num_prompt}"

    def seconds(self, timeline: Timeline) -> float:
        """The measured quantity."""
        if self.kind == "decode":
            return timeline.step_s
        return timeline.end_s if self.kind == "batch" else timeline.prefill_s

    def limit_s(self, limits: Limits) -> float:
        """The same on perfect hardware."""
        extend_s = limits.extend_s(self.batch, self.num_prompt, self.num_cached)
        decode_s = limits.decode_s(self.batch, self.num_prompt + self.num_new // 2)
        return {"decode": decode_s, "batch": extend_s + self.num_new * decode_s}.get(self.kind, extend_s)

    @property
    def num_tokens(self) -> int:
        """Tokens that the measured seconds produced or computed."""
        return {"decode": self.batch, "batch": self.batch * self.num_new}.get(self.kind, self.batch * self.num_prompt)


CPU_WORK = (
    Work("prefill", 1, 512),
    Work("prefill", 16, 128),
    Work("decode", 1, 256, num_new=33),
    Work("decode", 16, 256, num_new=33),
)
FIRST = Work("first", 1, 512, num_new=8)
"""What the first request after a start is: nothing of it may have to be compiled."""
GPU_WORK = (
    Work("decode", 1, 1024, num_new=128, target_ms=4.4),
    Work("decode", 8, 1024, num_new=128, target_ms=4.7),
    Work("decode", 32, 1024, num_new=128, target_ms=5.6),
    Work("decode", 64, 1024, num_new=128, target_ms=6.8),
    Work("decode", 128, 1024, num_new=128, target_ms=9.4),
    Work("decode", 256, 1024, num_new=128, target_ms=15.2),
    Work("prefill", 1, 512, target_ms=13.5),
    Work("prefill", 1, 2048, target_ms=48),
    Work("prefill", 1, 8192, target_ms=205),
    Work("prefill", 16, 2048, target_ms=16 * 2048 / 43.5),
    Work("extend", 1, 256, num_cached=16000, target_ms=14),
    Work("batch", 256, 1024, num_new=256, target_ms=9500),
)
TP_WORK = "decode-1x1024,decode-8x1024,decode-64x1024,prefill-1x2048"
"""Of several ranks; targets are those of one."""


class Runner(Protocol):
    """What measures one batch: the engine or a peer."""

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Timeline:
        """Submit all prompts at once, draw `num_new` tokens for each."""


def prompts_of(work: Work, vocab_size: int, rng: torch.Generator) -> list[list[int]]:
    """Fresh random token ids; nothing in them was seen before."""
    return torch.randint(0, vocab_size, (work.batch, work.num_cached + work.num_prompt), generator=rng).tolist()


def repeat_work(
    work: Work, engine: Runner, peer: Runner | None, repeats: int, vocab_size: int
) -> list[tuple[Timeline, Timeline | None]]:
    """The engine's and the peer's times of each repetition; one more runs first to warm both up."""
    # Each work has prompts of its own: the cache keeps what other works computed, the same beginnings would be found.
    rng, timelines = torch.Generator().manual_seed(crc32(work.name.encode())), []
    for repeat in range(repeats + 1):
        prompts = prompts_of(work, vocab_size, rng)
        if work.num_cached:
            engine.run([prompt[: work.num_cached] for prompt in prompts], 1)
        theirs = peer.run(prompts, work.num_new) if peer and repeat % 2 else None
        ours = engine.run(prompts, work.num_new)
        if peer and not repeat % 2:
            theirs = peer.run(prompts, work.num_new)
        timelines.append((ours, theirs))
    return timelines[1:]


def summarize(
    work: Work, timelines: Sequence[tuple[Timeline, Timeline | None]], limits: Limits | None
) -> dict[str, object]:
    """Medians; beside them the peer's with the median of the ratios, the target and the limit, where there are any."""
    seconds = median(work.seconds(ours) for ours, _ in timelines)
    result: dict[str, object] = {"work": work.name, "ms": seconds * 1e3, "tokens_per_s": work.num_tokens / seconds}
    pairs = [(ours, theirs) for ours, theirs in timelines if theirs is not None]
    if pairs:
        result["peer_ms"] = median(work.seconds(theirs) for _, theirs in pairs) * 1e3
        result["speedup"] = median(work.seconds(theirs) / work.seconds(ours) for ours, theirs in pairs)
        same = [mine == other for ours, theirs in pairs for mine, other in zip(ours.tokens, theirs.tokens, strict=True)]
        result["same_outputs"] = sum(same) / len(same)
    if work.target_ms is not None:
        result |= {"target_ms": work.target_ms, "meets_target": seconds * 1e3 <= work.target_ms}
    shares = [ours.busy_share for ours, _ in timelines if ours.busy_share is not None]
    if work.kind == "decode" and shares and limits is not None:
        result["busy"] = median(shares)
    if limits is not None:
        limit_s = work.limit_s(limits)
        result |= {"limit_ms": limit_s * 1e3, "of_limit": limit_s / seconds}
    return result


def choose(names: str, known: Sequence[Work]) -> list[Work]:
    """Work by name, all of it when no name is given. Raises typer.BadParameter."""
    by_name = {work.name: work for work in known}
    unknown = [name for name in names.split(",") if name and name not in by_name]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; known: {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",") if name] or list(known)


def chosen_work(names: str, config: EngineConfig) -> list[Work]:
    """Work by name, else what such an engine is measured at. Raises typer.BadParameter."""
    if config.device == "cpu":
        return choose(names, CPU_WORK)
    if config.parallel.tp_size == 1:
        return choose(names, GPU_WORK)
    return choose(names or TP_WORK, [replace(each, target_ms=None) for each in GPU_WORK])


def engine_fields(text: str) -> dict[str, Any]:
    """ "page_size=64,kv_dtype=fp8_e4m3" as fields of EngineConfig and its parts. Raises typer.BadParameter."""
    parts: dict[str, type[Any]] = {"formats": Formats, "launching": Launching, "parallel": Parallel}
    known = {each.name: part for part, kind in parts.items() for each in fields(kind)}
    known |= {each.name: "" for each in fields(EngineConfig) if each.name not in parts}
    found: dict[str, dict[str, Any]] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in known:
            raise typer.BadParameter(f"{name}; known: {', '.join(known)}")
        typed = int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)
        found.setdefault(known[name], {})[name] = typed
    return found.pop("", {}) | {part: parts[part](**values) for part, values in found.items()}


def run_shape(shape: str, config: EngineConfig, chosen: Sequence[Work], repeats: int) -> Iterator[dict[str, object]]:
    """One result for each work, as it comes. `config` says nothing of the model."""
    facts, on_cpu = SHAPES[shape], config.device == "cpu"
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as name:
        folder = write_shape(shape, Path(name))
        begin_s = time.perf_counter()
        if on_cpu:
            write_random_checkpoint(folder, seed=0)
            engine = build_engine(replace(config, model=name, kv_memory=CPU_KV_BYTES))
        else:
            engine = build_engine(replace(config, model=name, random_weights=True, max_step_tokens=GPU_STEP_TOKENS))
        peer = TransformersPeer(folder, config.dtype) if on_cpu else None
    keep_what_is_loaded()
    built_s = time.perf_counter() - begin_s
    driver, limits = EngineDriver(engine), None if on_cpu else _limits(facts, config)
    if not on_cpu:
        first = driver.run(prompts_of(FIRST, facts["vocab_size"], torch.Generator().manual_seed(1)), FIRST.num_new)
        yield {"work": "start", "built_s": built_s, "first_token_ms": first.prefill_s * 1e3, "ms": first.end_s * 1e3}
    for work in chosen:
        timelines = repeat_work(work, driver, peer, repeats, facts["vocab_size"])
        yield summarize(work, timelines, limits)
    engine.close()


def _limits(facts: dict[str, Any], config: EngineConfig) -> Limits:
    return Limits.of_shape(
        facts,
        config.parallel.tp_size,
        weight_bytes=1 if config.formats.quantization == "fp8" else 2,
        kv_bytes=1 if "fp8" in config.formats.kv_dtype else 2,
    )


def main(
    device: str = "cpu",
    model_shape: str = "",
    engine: str = typer.Option("", help="Fields of EngineConfig: dtype=float16,page_size=64"),
    work: str = "",
    repeats: int = 5,
    threads: int = 0,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Measure the engine; on the CPU beside transformers."""
    logging.basicConfig(level="INFO")  # which attention runs and why, and what the warm-up took
    shape = model_shape or ("cpu-100m" if device == "cpu" else "llama-8b")
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape}; known: {', '.join(SHAPES)}")
    if threads:
        torch.set_num_threads(threads)
    facts = SHAPES[shape]
    settings = {"device": device, "dtype": facts["dtype"], "max_model_len": facts["max_position_embeddings"]}
    config = EngineConfig("", **settings | engine_fields(engine))
    chosen = chosen_work(work, config)
    results = []
    for result in run_shape(shape, config, chosen, repeats):
        results.append(result)
        words = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
        )
        print("  ".join(words), flush=True)
    if as_json:
        header = {
            "shape": shape,
            "device": device,
            "dtype": config.dtype,
            "engine": engine,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(header | {"work": results}))


if __name__ == "__main__":
    typer.run(main)
