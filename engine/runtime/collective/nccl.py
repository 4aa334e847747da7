"""Ranks over NCCL, a communicator a thread: where it was asked for, or GPUs cannot read each other's memory."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

# NVLink multicast needs a driver service that not every host runs.
_SETTINGS = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}


class NcclRanks:
    """Implements Ranks."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        store = distributed.HashStore()
        self.members: Sequence[NcclRank] = [
            NcclRank(distributed.ProcessGroupNCCL(store, rank, len(devices)), len(devices))
            for rank in range(len(devices))
        ]

    def abort(self) -> None:
        """See Ranks: waiting kernels end."""
        for member in self.members:
            member.group.abort()


class NcclRank:
    """Implements engine.models.base.Collective for one thread. NCCL gives every rank the same bits."""

    def __init__(self, group: "distributed.ProcessGroupNCCL", size: int) -> None:
        self.group = group
        self._size = size

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        """See Collective."""
        if x_TD.numel():
            self.group.allreduce([x_TD]).wait()
        return x_TD

    def all_gather(self, x_SV: Tensor) -> Tensor:
        """See Collective."""
        parts_WSV = x_SV.new_empty(self._size, *x_SV.shape)
        if x_SV.numel():
            self.group._allgather_base(parts_WSV, x_SV).wait()
        return parts_WSV.transpose(0, 1).reshape(len(x_SV), -1)
