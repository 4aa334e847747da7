"""One rank of several in a process of its own: memory that all map stands for that of GPUs, Triton's interpreter for
their processors. Prints what it computed."""

import json
import sys
from pathlib import Path

import torch

from engine.kernels.peer import NUM_SLOTS, SLAB_BYTES, PeerMemory, fits_slots, peer_add_norm, peer_join, peer_sum

EPS = 1e-5
SIZES = ((1, 1), (3, 40), (5, 1000), (2, 9000), (1, 8))


def inputs(rank: int, size: tuple[int, int]) -> torch.Tensor:
    """What that rank brings."""
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * rank + size[1])).half()


def stream_and_weight(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the sum is added to and the norm's weight: the same on every rank."""
    generator = torch.Generator().manual_seed(size[1])
    return torch.randn(size, generator=generator).half(), torch.randn(size[1], generator=generator).half()


def memory_of(folder: Path, rank: int, num_ranks: int) -> PeerMemory:
    """All ranks' memory as this process maps it."""
    slabs, flags = [], []
    for each in range(num_ranks):
        slabs.append(torch.from_file(str(folder / f"slab{each}"), shared=True, size=SLAB_BYTES, dtype=torch.uint8))
        name, size = str(folder / f"flags{each}"), NUM_SLOTS * num_ranks
        flags.append(torch.from_file(name, shared=True, size=size, dtype=torch.int64))
    KEEP.extend((slabs, flags))
    return PeerMemory(
        rank=rank,
        slabs_W=torch.tensor([slab.data_ptr() for slab in slabs]),
        flags_W=torch.tensor([flag.data_ptr() for flag in flags]),
        meetings=torch.zeros(NUM_SLOTS, dtype=torch.int64),
        patience_ns=0,
    )


KEEP: list[object] = []


def hexadecimal(values: torch.Tensor) -> str:
    """The bytes."""
    return values.contiguous().view(torch.uint8).numpy().tobytes().hex()


def main(folder: str, num_ranks: str, two_shot: str, rank: str) -> None:
    """Every size twice over, sums and joins in turn; ranks start as far apart as the machine makes them."""
    memory = memory_of(Path(folder), int(rank), int(num_ranks))
    sums, joins, norms = [], [], []
    for size in SIZES * 2:
        mine = inputs(int(rank), size)
        sums.append(hexadecimal(peer_sum(mine, memory, two_shot=bool(int(two_shot)))))
        joins.append(hexadecimal(peer_join(mine, memory)))
        if fits_slots(mine):
            stream, weight = stream_and_weight(size)
            normed = peer_add_norm(mine, stream, weight, EPS, memory)
            norms.append([hexadecimal(stream), hexadecimal(normed)])
    print(json.dumps({"sums": sums, "joins": joins, "norms": norms}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
