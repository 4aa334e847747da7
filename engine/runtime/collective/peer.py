"""Ranks on GPUs of one host that read each other's memory. All live in one process, so an address is an address."""

import ctypes
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from engine.core.errors import InvalidRequest
from engine.kernels.peer import (
    GIVE_UP,
    NUM_SLOTS,
    SLAB_BYTES,
    PeerMemory,
    fits_slots,
    peer_add_norm,
    peer_join,
    peer_sum,
)

_NATIVE_ATOMICS = 3
"""CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED of the CUDA driver API."""


class PeerRanks:
    """Implements Ranks."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Raises InvalidRequest if some device cannot read another's memory."""
        reason = obstacle(devices)
        if reason is not None:
            raise InvalidRequest(f"collective peer: {reason}", param="collective")
        _enable_access(devices)
        triton.runtime.driver.active.get_current_target()  # made here, once: it is not made for threads that race
        slabs = [torch.zeros(SLAB_BYTES, dtype=torch.uint8, device=device) for device in devices]
        size = len(devices)
        self._flags = [torch.zeros(NUM_SLOTS, size, dtype=torch.int64, device=device) for device in devices]
        # Ready before they are needed: a rank that fails may have left its device without memory.
        self._give_up = torch.full((NUM_SLOTS, size), GIVE_UP, dtype=torch.int64).pin_memory()
        self._streams = [torch.cuda.Stream(device) for device in devices]
        self.members: Sequence[PeerRank] = [
            PeerRank(
                PeerMemory(
                    rank=rank,
                    slabs_W=torch.tensor([slab.data_ptr() for slab in slabs], device=device),
                    flags_W=torch.tensor([flags.data_ptr() for flags in self._flags], device=device),
                    meetings=torch.zeros(NUM_SLOTS, dtype=torch.int64, device=device),
                ),
                keep=(slabs, self._flags),
            )
            for rank, device in enumerate(devices)
        ]
        for device in devices:
            torch.cuda.synchronize(device)

    def abort(self) -> None:
        """See Ranks. A copy engine tells every device that all have come to every meeting: it needs no kernel, so it
        works while kernels wait. What they compute then is garbage."""
        for flags, stream in zip(self._flags, self._streams, strict=True):
            with torch.cuda.device(flags.device), torch.cuda.stream(stream):
                flags.copy_(self._give_up, non_blocking=True)


class PeerRank:
    """Implements engine.models.base.Collective for one rank."""

    def __init__(self, memory: PeerMemory, keep: object) -> None:
        """`keep` is what the addresses in `memory` point to."""
        self.memory = memory
        self._keep = keep

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        """See Collective."""
        return peer_sum(x_TD, self.memory)

    def add_norm(self, x_TD: Tensor, stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        """See Collective: a row fits a slot, and there is a program for each row."""
        return peer_add_norm(x_TD, stream_TD, weight_D, eps, self.memory) if fits_slots(x_TD) else None

    def all_gather(self, x_SV: Tensor) -> Tensor:
        """See Collective."""
        return peer_join(x_SV, self.memory)


def obstacle(devices: Sequence[torch.device]) -> str | None:
    """Why these devices cannot work in each other's memory; None if they can."""
    for here in devices:
        for there in devices:
            if here == there:
                continue
            if not torch.cuda.can_device_access_peer(here, there):
                return f"{here} cannot read the memory of {there}"
            if not _has_atomics(here, there):
                return f"{here} has no atomic operations on the memory of {there} (no NVLink between them?)"
    return None


def _has_atomics(here: torch.device, there: torch.device) -> bool:
    """What torch does not tell; meetings need it."""
    value = ctypes.c_int(0)
    driver = ctypes.CDLL("libcuda.so.1")
    status = driver.cuDeviceGetP2PAttribute(ctypes.byref(value), _NATIVE_ATOMICS, here.index, there.index)
    return status == 0 and value.value == 1


def _enable_access(devices: Sequence[torch.device]) -> None:
    """torch lets a device read another's memory when it first copies between the two, in that direction."""
    for source in devices:
        for target in devices:
            if source != target:
                torch.ones(1, device=source).to(target)
