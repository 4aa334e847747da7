"""Copies of whole tiles by the chip's own engine (the Tensor Memory Accelerator): what they ask for.

See NVIDIA's PTX ISA, "cp.async.bulk.tensor": a matrix begins at and its rows are a multiple of 16 bytes.
"""

from functools import lru_cache

import torch

HOPPER = (9, 0)


def has_bulk_copies(x: torch.Tensor) -> bool:
    """Whether the device of x has the engine."""
    return x.is_cuda and _capability(x.get_device()) >= HOPPER


def in_rows_of_16_bytes(*matrices: torch.Tensor) -> bool:
    """Whether each of these contiguous matrices can be copied tile by tile."""
    return all(x.data_ptr() % 16 == 0 and x.shape[1] * x.element_size() % 16 == 0 for x in matrices)


@lru_cache(maxsize=64)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
