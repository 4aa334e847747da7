"""Products of one decode step on a GPU: the few-row kernel against the vendor's, as a fraction of the memory limit.

python -m bench.kernels --json            every shape and row count, every tiling
python -m bench.kernels --rows 1,8 --copies 12
python -m bench.kernels --rows 64,128,256     beyond the few-row kernel
python -m bench.kernels --fp8             8-bit weights: the vendor's product then has 8-bit activations too
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from functools import partial

import torch
import triton
import typer

from engine.kernels import gate_up
from engine.kernels.activation import silu_mul
from engine.kernels.fp8 import scaled_product
from engine.kernels.linear_small import MAX_ROWS, MAX_ROWS_SILU, Tiles, linear_small

Stored = tuple[torch.Tensor, torch.Tensor | None]
"""Weights of a product, one a copy, and the scales of 8-bit ones."""
MEMORY_BYTES_PER_S = 4.25e12  # what a device-to-device copy reaches on an H200


@dataclass(frozen=True)
class Product:
    """One projection of a Llama-3.1-8B layer: out features, in features, and the stages fused around it."""

    name: str
    num_out: int
    width: int
    silu_mul: bool = False
    residual: bool = False


PRODUCTS = (
    Product("qkv", 6144, 4096),
    Product("o", 4096, 4096, residual=True),
    Product("gate_up", 28672, 4096, silu_mul=True),
    Product("down", 4096, 14336, residual=True),
    Product("lm_head", 128256, 4096),
)


def graph_us(step: Callable[[int], object], copies: int, repeats: int = 20) -> float:
    """Median microseconds of one call, from replays of a graph of `copies` calls; call i gets i (cold weights)."""
    step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            step(i)
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / copies)
    return float(sorted(times)[len(times) // 2])


TILINGS = (
    Tiles(16, 256, 4, 4),
    Tiles(16, 512, 4, 3),
    Tiles(32, 128, 4, 5),
    Tiles(32, 256, 4, 4),
    Tiles(64, 64, 4, 6),
    Tiles(64, 128, 4, 4),
    Tiles(64, 128, 4, 5),
    Tiles(128, 64, 4, 5),
    Tiles(128, 128, 8, 3),
    Tiles(64, 64, 4, 8, bulk=True),
    Tiles(64, 128, 4, 4, bulk=True),
    Tiles(64, 128, 4, 8, bulk=True),
    Tiles(64, 256, 4, 4, bulk=True),
    Tiles(64, 256, 4, 5, bulk=True),
    Tiles(128, 64, 4, 4, bulk=True),
    Tiles(128, 64, 8, 4, bulk=True),
    Tiles(128, 128, 4, 3, bulk=True),
    Tiles(128, 128, 4, 4, bulk=True),
)
TILINGS_FP8 = (
    Tiles(16, 512, 4, 4),
    Tiles(32, 128, 4, 5),
    Tiles(32, 256, 4, 4),
    Tiles(32, 512, 4, 4),
    Tiles(64, 128, 4, 5),
    Tiles(64, 256, 4, 3),
    Tiles(64, 256, 4, 4),
    Tiles(64, 256, 8, 4),
    Tiles(128, 128, 4, 4),
    Tiles(128, 128, 8, 4),
)
"""The cuts worth trying on a Hopper GPU: at most 160 KiB of tiles in flight a program."""


def run_nth(
    product: Product, x: torch.Tensor, stored: Stored, residual: torch.Tensor | None, cut: Tiles, i: int
) -> torch.Tensor:
    """One call of the few-row kernel on weight `i`, with the product's stages."""
    weights, scales = stored
    scale = scales[i] if scales is not None else None
    return linear_small(x, weights[i], scale_N=scale, silu_mul=product.silu_mul, residual_MN=residual, tiles=cut)


def vendor(x: torch.Tensor, stored: Stored, i: int) -> torch.Tensor:
    """The vendor's product, with what makes 8-bit activations before it."""
    weights, scales = stored
    return x @ weights[i].T if scales is None else scaled_product(x, weights[i], scales[i])


def measure(product: Product, rows: int, copies: int, *, fp8: bool = False) -> dict[str, object]:
    """Best tiling of one product against the vendor's product with its stages as separate operations left out."""
    copies = 2 if product.num_out > 100_000 else copies
    weights = torch.randn(copies, product.num_out, product.width, device="cuda", dtype=torch.bfloat16) * 0.02
    x = torch.randn(rows, product.width, device="cuda", dtype=torch.bfloat16)
    num_out = product.num_out // 2 if product.silu_mul else product.num_out
    residual = torch.randn(rows, num_out, device="cuda", dtype=torch.bfloat16) if product.residual else None
    scales = None
    if fp8:
        scales = torch.full((copies, product.num_out), 1e-3, device="cuda")
        weights = (weights * 1e3).clamp(-448, 448).to(torch.float8_e4m3fn)
    limit_us = product.num_out * product.width * weights.element_size() / MEMORY_BYTES_PER_S * 1e6
    vendor_us = graph_us(partial(vendor, x, (weights, scales)), copies)
    result: dict[str, object] = {"product": product.name, "rows": rows, "limit_us": limit_us, "vendor_us": vendor_us}
    if rows > (MAX_ROWS_SILU if product.silu_mul else MAX_ROWS):
        if product.silu_mul and gate_up.takes(x, weights[0]):
            result |= {"vendor_and_silu_us": graph_us(lambda i: silu_mul(x @ weights[i].T), copies)}
            result |= {"us": graph_us(lambda i: gate_up.gate_up(x, weights[i]), copies)}
        return result
    tried: list[tuple[float, Tiles]] = []
    for cut in TILINGS_FP8 if fp8 else TILINGS:
        try:
            us = graph_us(partial(run_nth, product, x, (weights, scales), residual, cut), copies)
        except triton.runtime.errors.OutOfResources as error:
            print(f"{product.name} rows {rows} {cut}: {error}")
            continue
        tried.append((us, cut))
    tried.sort(key=lambda pair: pair[0])
    us, cut = tried[0]
    top = [(round(each_us, 1), *astuple(each)) for each_us, each in tried[:4]]
    return result | {"us": us, "of_limit": limit_us / us, "tiles": asdict(cut), "top": top}


def main(
    rows: str = "1,2,4,8,16",
    copies: int = 12,
    only: str = "",
    fp8: bool = False,
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Print one line a product and row count; with --json one object as the last line."""
    results = []
    for product, num_rows in itertools.product(PRODUCTS, map(int, rows.split(","))):
        if only and product.name not in only.split(","):
            continue
        results.append(measure(product, num_rows, copies, fp8=fp8))
        print(results[-1], flush=True)
    if as_json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "products": results}))


if __name__ == "__main__":
    typer.run(main)
