"""Sums over the ranks of one worker: microseconds by way and size, inside a CUDA graph and launched one by one.

python -m bench.collective --tp 2 --json       needs as many GPUs

`bus_gb_per_s` is what each rank must receive at least, over the time: 2 (W - 1) / W of the tensor.
"""

import json
import threading
import time
from collections.abc import Callable
from statistics import median

import torch
import typer
from torch import Tensor

from engine.kernels.peer import peer_sum
from engine.models.base import Collective
from engine.runtime.collective.nccl import NcclRanks
from engine.runtime.collective.peer import PeerRank, PeerRanks

HIDDEN = 8192
TOKENS = (1, 8, 32, 64, 256, 1024, 2048, 8192)
IN_A_GRAPH = 20
LARGEST_GRAPH_TOKENS = 2048


def ways(tp: int) -> dict[str, list[Callable[[Tensor], Tensor]]]:
    """Each way to sum: a function for each rank."""
    devices = [torch.device("cuda", rank) for rank in range(tp)]
    peers, nccl = PeerRanks(devices), NcclRanks(devices)
    found = {"peer": [_peer(member, two_shot=False) for member in peers.members]}
    if tp & (tp - 1) == 0:
        found["peer two-shot"] = [_peer(member, two_shot=True) for member in peers.members]
    found["nccl"] = [_any(member) for member in nccl.members]
    return found


def _peer(member: Collective, two_shot: bool) -> Callable[[Tensor], Tensor]:
    assert isinstance(member, PeerRank)
    return lambda x: peer_sum(x, member.memory, two_shot=two_shot)


def _any(member: Collective) -> Callable[[Tensor], Tensor]:
    return lambda x: member.all_reduce(x)


def timed(start: threading.Barrier, work: Callable[[], object], repeats: int) -> list[float]:
    """Microseconds of one sum in each repetition: `work` does IN_A_GRAPH of them, all ranks at the same time."""
    taken = []
    for _ in range(repeats + 2):
        start.wait()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / IN_A_GRAPH * 1e6)
    return taken[2:]


def measure(sums: list[Callable[[Tensor], Tensor]], tokens: int, repeats: int) -> dict[str, float]:
    """Median microseconds of one sum on rank 0, all ranks at work."""
    figures: dict[str, float] = {}
    start = threading.Barrier(len(sums))

    def run(rank: int) -> None:
        torch.cuda.set_device(rank)
        x = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
        torch.cuda.synchronize()

        def many() -> None:
            for _ in range(IN_A_GRAPH):
                sums[rank](x)

        taken = {"launched_us": timed(start, many, repeats)}
        if tokens <= LARGEST_GRAPH_TOKENS:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                many()
            taken["graph_us"] = timed(start, graph.replay, repeats)
        if rank == 0:
            figures.update({name: median(values) for name, values in taken.items()})

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(sums))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures


def main(
    tp: int = 2,
    repeats: int = 15,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Measure sums of bfloat16 [tokens, 8192]."""
    results = []
    found = ways(tp)
    for tokens in TOKENS:
        for way, sums in found.items():
            figures = measure(sums, tokens, repeats)
            least_us = min(figures.values())
            moved = 2 * (tp - 1) / tp * tokens * HIDDEN * 2
            result = {"tokens": tokens, "way": way, **figures, "bus_gb_per_s": moved / least_us / 1e3}
            results.append(result)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))
    if as_json:
        print(json.dumps({"tp": tp, "device": torch.cuda.get_device_name(), "sums": results}))


if __name__ == "__main__":
    typer.run(main)
