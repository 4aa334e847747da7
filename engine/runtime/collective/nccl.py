"""Ranks over NCCL, a communicator a thread: where it was asked for, or GPUs cannot read each other's memory."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

_DISTRIBUTED: Any = torch.distributed
"""Its stubs know neither NCCL's groups nor the store."""
_SETTINGS = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast needs a driver service that not every host runs."""


class NcclRanks:
    """Implements Ranks."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        store, options = _DISTRIBUTED.HashStore(), _DISTRIBUTED.ProcessGroupNCCL.Options()
        self.members: Sequence[NcclRank] = [
            NcclRank(_DISTRIBUTED.ProcessGroupNCCL(store, rank, len(devices), options), len(devices))
            for rank in range(len(devices))
        ]

    def abort(self) -> None:
        """See Ranks: waiting kernels end."""
        for member in self.members:
            member.group.abort()


class NcclRank:
    """Implements engine.models.base.Collective for one thread. NCCL gives every rank the same bits."""

    def __init__(self, group: Any, size: int) -> None:
        self.group = group
        self._size = size

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        """See Collective."""
        if x_TD.numel():
            self.group.allreduce([x_TD]).wait()
        return x_TD

    def add_norm(self, x_TD: Tensor, stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        """See Collective."""
        return None

    def all_gather(self, x_SV: Tensor) -> Tensor:
        """See Collective."""
        parts_WSV = x_SV.new_empty(self._size, *x_SV.shape)
        if x_SV.numel():
            self.group._allgather_base(parts_WSV, x_SV).wait()
        return parts_WSV.transpose(0, 1).reshape(len(x_SV), -1)
