"""How many pages fit, and how long a sequence may then be. Only `free_bytes` asks a device."""

from pathlib import Path

import psutil
import torch

from engine.core.errors import InvalidRequest
from engine.core.types import NUM_SPARE_PAGES

DEFAULT_CPU_BYTES = 1 << 30
DEFAULT_DEVICE_FRACTION = 0.9
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Memory that can still be allocated on the device; on the host, no more than the container's limit leaves."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    limit = _read_number(cgroup / "memory.max")
    used = _read_number(cgroup / "memory.current")
    if limit is None or used is None:
        return available
    return min(available, max(0, limit - used + _reclaimable(cgroup / "memory.stat")))


def num_pages(kv_memory: int | float | None, page_bytes: int, device: torch.device, free: int) -> int:
    """Pages that `kv_memory` (see EngineConfig) buys, after the pool's spare slabs.

    Raises:
        InvalidRequest: more memory than there is free, or too little for one page.
    """
    if kv_memory is None:
        kv_memory = min(DEFAULT_CPU_BYTES, free) if device.type == "cpu" else DEFAULT_DEVICE_FRACTION
    budget = int(kv_memory * free) if isinstance(kv_memory, float) else kv_memory
    if budget > free:
        raise InvalidRequest(
            f"{readable(budget)} of KV pages do not fit: {device} has {readable(free)} free", param="kv_memory"
        )
    pages = budget // page_bytes - NUM_SPARE_PAGES
    if pages < 1:
        needed = (NUM_SPARE_PAGES + 1) * page_bytes
        raise InvalidRequest(
            f"{readable(budget)} of KV memory hold no page: one of {readable(page_bytes)} and the {NUM_SPARE_PAGES} "
            f"spare ones need {readable(needed)}",
            param="kv_memory",
        )
    return pages


def max_model_len(asked: int | None, model_limit: int, pages: int, page_size: int) -> int:
    """Tokens of the longest sequence to serve.

    Raises:
        InvalidRequest: the length that was asked for is beyond the model, or one such sequence does not fit the pages.
    """
    held = pages * page_size
    if asked is None:
        return min(model_limit, held)
    if asked > model_limit:
        raise InvalidRequest(f"max_model_len {asked} is beyond the model's {model_limit} tokens", param="max_model_len")
    if asked > held:
        raise InvalidRequest(
            f"one sequence of max_model_len {asked} tokens does not fit: the KV memory holds {held} tokens "
            f"({pages} pages of {page_size}); give more KV memory or a smaller max_model_len",
            param="kv_memory",
        )
    return asked


def readable(num_bytes: int) -> str:
    """Bytes for a person: "1.5 GiB"."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such limit, or the word "max"
        return None


def _reclaimable(stat: Path) -> int:
    """File pages that the kernel drops when memory is wanted, such as those a checkpoint was read through."""
    lines = stat.read_text().splitlines() if stat.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
