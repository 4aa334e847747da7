"""`baton plan`: how many workers a load needs, before anything runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baton.sizing import GPUS, Load, ModelSize, Plan, make_plan
from deploy.config import Flag, as_command
from engine.core.errors import InvalidRequest
from engine.models.config import AttentionConfig, ModelConfig
from engine.models.registry import load_config

SHAPES = {
    "llama-8b": "layers=32,hidden=4096,heads=32,kv_heads=8,head_dim=128,mlp=14336,vocab=128256",
    "llama-70b": "layers=80,hidden=8192,heads=64,kv_heads=8,head_dim=128,mlp=28672,vocab=128256",
    "qwen2.5-14b": "layers=48,hidden=5120,heads=40,kv_heads=8,head_dim=128,mlp=13824,vocab=152064",
}
_FIELDS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocab")


def model_of(text: str) -> ModelConfig:
    """A checkpoint folder, a name of SHAPES, or what those are made of. Raises InvalidRequest, CheckpointError."""
    text = SHAPES.get(text, text)
    if "=" not in text:
        folder = Path(text)
        if not folder.is_dir():
            raise InvalidRequest(
                f"{text!r} is neither a checkpoint folder nor one of {', '.join(SHAPES)} nor {SHAPES['llama-8b']}",
                param="model",
            )
        return load_config(folder)
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    dtype = parts.pop("dtype", "bfloat16")
    if set(parts) != set(_FIELDS) or not all(value.isdecimal() and int(value) for value in parts.values()):
        raise InvalidRequest(f"a shape is {', '.join(f'{name}=N' for name in _FIELDS)}", param="model")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InvalidRequest(f"dtype is {dtype!r}", param="model")
    layers, hidden, heads, kv_heads, head_dim, mlp, vocab = (int(parts[name]) for name in _FIELDS)
    attention = AttentionConfig(heads, kv_heads, head_dim)
    return ModelConfig("shape", layers, hidden, mlp, vocab, 1 << 20, attention, 1e-5, dtype)


FLAGS = (
    Flag("model", str, ..., f"Checkpoint folder, {', '.join(SHAPES)}, or layers=N,hidden=N and so on."),
    Flag("gpu", str, ..., f"One for each worker: {', '.join(GPUS)}."),
    Flag("input_len", int, ..., "Tokens of a prompt."),
    Flag("output_len", int, ..., "Tokens of an answer."),
    Flag("rate", float, ..., "Requests a second."),
    Flag("slo_ttft_ms", float, 500.0, "99 % of first tokens within."),
    Flag("slo_itl_ms", float, 50.0, "99 % of gaps between tokens within."),
    Flag("cached", float, 0.0, "Share of prompt tokens that a cache has."),
    Flag("json", bool, False, "Print the plan as JSON."),
)


def _run(values: dict[str, Any]) -> None:
    """Say how many prefill and decode workers a load needs, their batch and memory, and the TTFT and ITL to expect.

    A cost model, not a measurement: it is within a few per cent of what was measured on H200s where queues are short.
    """
    gpu = values["gpu"]
    if gpu not in GPUS:
        raise InvalidRequest(f"must be one of {', '.join(GPUS)}, not {gpu!r}", param="gpu")
    load = Load(
        input_len=values["input_len"],
        output_len=values["output_len"],
        requests_per_s=values["rate"],
        ttft_s=values["slo_ttft_ms"] / 1e3,
        itl_s=values["slo_itl_ms"] / 1e3,
        cached=values["cached"],
    )
    made = make_plan(ModelSize.of(model_of(values["model"])), GPUS[gpu], load)
    if values["json"]:
        print(json.dumps(asdict(made) | {"gpu": gpu, "measured_gpu": GPUS[gpu].measured}))
    else:
        print("\n".join(lines(made, gpu)))


plan = as_command("plan", _run, FLAGS)


def lines(made: Plan, gpu: str) -> list[str]:
    """For people."""
    said = [
        f"workers       {made.prefill_workers} prefill, {made.decode_workers} decode: one {gpu} each",
        f"prefill       {made.prefill_s * 1e3:.0f} ms a prompt, {made.prefill_load:.0%} of the time",
        f"decode batch  {made.rows:.1f} rows on average, {made.max_rows} fit",
        f"memory        {made.weight_bytes / 1e9:.1f} GB weights, {made.kv_bytes / 1e9:.1f} GB pages on each",
        f"transfer      {made.transfer_s * 1e3:.1f} ms a prompt, between its first and second token",
        f"TTFT ms       {made.ttft_p50_s * 1e3:.0f} p50, {made.ttft_p99_s * 1e3:.0f} p99",
        f"ITL ms        {made.itl_p50_s * 1e3:.2f} p50, {made.itl_p99_s * 1e3:.2f} p99",
    ]
    if not GPUS[gpu].measured:
        said.append(f"Nothing was measured on {gpu}: this is its data sheet times the shares that an H200 reaches.")
    return said
