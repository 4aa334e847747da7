"""Which way the ranks of a worker compute together."""

import logging
from collections.abc import Sequence

import torch

from engine.runtime.collective.base import Ranks
from engine.runtime.collective.threads import ThreadRanks

logger = logging.getLogger(__name__)


def open_ranks(choice: str, devices: Sequence[torch.device]) -> Ranks:
    """The ranks on these devices, one each.

    Args:
        choice: auto (peer where the devices can, else nccl), peer or nccl; the CPU has threads alone.

    Raises:
        InvalidRequest: the choice cannot be had here.
    """
    if devices[0].type == "cpu":
        return ThreadRanks(len(devices))
    from engine.runtime.collective.peer import PeerRanks, obstacle

    reason = obstacle(devices) if choice == "auto" else None
    if choice == "peer" or (choice == "auto" and reason is None):
        return PeerRanks(devices)
    logger.info("%d ranks sum by NCCL%s", len(devices), f": {reason}" if reason else "")
    from engine.runtime.collective.nccl import NcclRanks

    return NcclRanks(devices)
