"""Attention on a GPU by itself: TB/s of decode and TFLOP/s of prompts, by backend, page size and batch.

python -m bench.attention --json                            32 heads, 8 kv heads of 128, bfloat16
python -m bench.attention --kv-dtype float8_e4m3fn --backends triton,fa3 --pages 128

Decode reads each row's whole context once; its bytes over the time, against the memory's 4.3 TB/s. Prompts count
4 * heads * head_dim operations a visible pair of tokens, against 790 TFLOP/s. Every call of a measurement works on
another layer of the pool, so that what it reads is not in the cache. Decode is replayed from a CUDA graph, planned
before it; prompts are launched, and long enough to hide that.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import typer

from engine.attention.base import AttentionBackend, AttentionBatch, AttentionShape
from engine.attention.select import make_backend
from engine.core.errors import InvalidRequest

MEMORY_BYTES_PER_S = 4.3e12
FLOPS_PER_S = 790e12
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MAX_POOL_BYTES = 8 << 30
MIN_READ_BYTES = 256 << 20
"""Of all layers of a measurement together: several times the last-level cache."""
MAX_LAYERS = 32
REPEATS = 7


@dataclass(frozen=True)
class Case:
    """`batch` rows of `num_new` tokens after `num_cached`."""

    batch: int
    num_new: int
    num_cached: int

    @property
    def name(self) -> str:
        """decode-64x2048, prefill-2048, prefill-2048+6144."""
        if self.num_new == 1:
            return f"decode-{self.batch}x{self.length}"
        return f"prefill-{self.num_new}" + (f"+{self.num_cached}" if self.num_cached else "")

    @property
    def length(self) -> int:
        """Tokens of a row, new ones included."""
        return self.num_cached + self.num_new


CASES = (
    *(Case(batch, 1, length - 1) for length in (1024, 2048) for batch in (1, 8, 64, 256)),
    Case(1, 2048, 0),
    Case(1, 8192, 0),
    Case(1, 2048, 6144),
)


def make_batch(case: Case, page_size: int, device: str) -> tuple[AttentionBatch, int]:
    """The step, its pages in random order, and how many pages it has."""
    per_row = -(-case.length // page_size)
    num_pages = case.batch * per_row
    table = torch.randperm(num_pages, device=device).view(case.batch, per_row).int()
    position = torch.arange(case.num_cached, case.length, device=device)
    slots = table[:, position // page_size].long() * page_size + position % page_size
    batch = AttentionBatch(
        starts=[case.num_cached] * case.batch,
        num_new=[case.num_new] * case.batch,
        cu_seqlens_q_B1=torch.arange(0, case.batch * case.num_new + 1, case.num_new, device=device).int(),
        cache_seqlens_B=torch.full((case.batch,), case.length, dtype=torch.int32, device=device),
        page_table_BP=table,
        slots_T=slots.flatten(),
    )
    return batch, num_pages


def median_us(work: Callable[[], object], calls: int, *, graph: bool) -> float:
    """Microseconds of one of the `calls` that `work` makes."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    run = work
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        run = captured.replay
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1e3 / calls)
    return sorted(times)[REPEATS // 2]


def measure(case: Case, name: str, page_size: int, kv_dtype: torch.dtype) -> dict[str, object]:
    """One row of the table; a backend that cannot run it says why."""
    dtype, row = torch.bfloat16, {"case": case.name, "backend": name, "page": page_size}
    batch, num_pages = make_batch(case, page_size, "cuda")
    token_bytes = 2 * KV_HEADS * HEAD_DIM * kv_dtype.itemsize
    layer_bytes = num_pages * page_size * token_bytes
    layers = max(2, min(MAX_LAYERS, MAX_POOL_BYTES // layer_bytes, max(4, -(-MIN_READ_BYTES // layer_bytes))))
    shape = AttentionShape(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5, (None,) * layers)
    pool = torch.empty(num_pages, layers, 2, page_size, KV_HEADS, HEAD_DIM, dtype=kv_dtype, device="cuda")
    for page in pool.split(max(1, (1 << 28) // (pool[0].numel() * 4))):
        page.copy_(torch.randn(page.shape, device="cuda"))
    try:
        backend = make_backend(name, pool, shape, dtype)
    except InvalidRequest as error:
        return row | {"refused": error.message}
    return row | rate(case, backend, batch, layers, token_bytes)


def rate(
    case: Case, backend: AttentionBackend, batch: AttentionBatch, layers: int, token_bytes: int
) -> dict[str, object]:
    """Microseconds a layer, and TB/s or TFLOP/s with their share of the chip's."""
    tokens = case.batch * case.num_new
    q, k, v = (
        torch.randn(layers, tokens, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    backend.plan(batch)

    def work() -> None:
        for layer in range(layers):
            backend.attend(layer, q[layer], (k[layer], v[layer]))

    us = median_us(work, layers, graph=batch.is_decode)
    if batch.is_decode:
        bytes_per_s = case.batch * case.length * token_bytes / us * 1e6
        return {"us": us, "tb_per_s": bytes_per_s / 1e12, "of_limit": bytes_per_s / MEMORY_BYTES_PER_S}
    pairs = case.num_new * case.num_cached + case.num_new * (case.num_new + 1) // 2
    flops_per_s = 4 * HEADS * HEAD_DIM * pairs / us * 1e6
    return {"us": us, "tflop_per_s": flops_per_s / 1e12, "of_limit": flops_per_s / FLOPS_PER_S}


def run(
    cases: Sequence[Case], backends: Sequence[str], pages: Sequence[int], kv_dtype: torch.dtype
) -> Iterator[dict[str, object]]:
    """A row for each combination, as it comes."""
    for case, page_size, name in itertools.product(cases, pages, backends):
        if name == "fa2" and page_size % 256 and case != cases[0]:
            continue  # it was refused in words once for each page size
        yield measure(case, name, page_size, kv_dtype)
        torch.cuda.empty_cache()


def main(
    backends: str = "fa3,flashinfer,fa2,triton",
    pages: str = "16,64,128,256",
    cases: str = "",
    kv_dtype: str = "bfloat16",
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Measure and print a line for each row."""
    known = {case.name: case for case in CASES}
    chosen = [known[name] for name in cases.split(",") if name] or list(CASES)
    stored = torch.float8_e4m3fn if "float8" in kv_dtype else torch.bfloat16
    rows = []
    for row in run(chosen, backends.split(","), [int(page) for page in pages.split(",")], stored):
        rows.append(row)
        print("  ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    if as_json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "kv_dtype": kv_dtype, "rows": rows}))


if __name__ == "__main__":
    typer.run(main)
