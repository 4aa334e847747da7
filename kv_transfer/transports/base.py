"""The one way pages move: the side that owns the destination memory reads (decode pulls).

A transport moves bytes and reports; it proves nothing (kv_transfer.session does). It is owned by one thread, the
transfer manager's: no method is called from any other thread, and no method blocks for the length of a transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from engine.core.types import WorkerInfo


class OpStatus(StrEnum):
    """Terminal states of one posted operation. After either, the transport touches the memory no more."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Completion:
    """One operation ended. `generations` answers a read of generations (one an asked page), else empty."""

    op: int
    status: OpStatus
    num_bytes: int = 0
    generations: tuple[int, ...] = ()
    peer_lost: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class PageRead:
    """Copy remote page `src[i]`, layers [layer_begin, layer_end), into local page `dst[i]`, for every i."""

    op: int
    peer: str
    """Worker id and incarnation, as `peer_key` gives them."""
    src: Sequence[int]
    dst: Sequence[int]
    layer_begin: int
    layer_end: int


def peer_key(worker_id: str, incarnation: int) -> str:
    """The name of one incarnation of one worker: what operations, agents and breakers are keyed by."""
    return f"{worker_id}@{incarnation:016x}"


class Transport(Protocol):
    """Seven methods; see the module's text for the threading rule."""

    name: str

    def descriptor(self) -> bytes:
        """What a peer needs to read this worker's pages and generations. No pickle; authenticated by the caller."""

    def connect(self, info: WorkerInfo) -> None:
        """Make the peer's pages readable. Raises Incompatible or TransferFailed with the reason in words."""

    def disconnect(self, peer: str) -> None:
        """Forget that incarnation. Operations in flight still end with a Completion."""

    def read_pages(self, read: PageRead) -> None:
        """Post one read. It ends with exactly one Completion, also when the peer is lost."""

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of the generations of remote `pages`, ordered after every read that has completed."""

    def poll(self) -> list[Completion]:
        """Operations that ended since the last call; empty when none did. Never waits."""

    def close(self) -> None:
        """End everything. After it returns no memory is touched."""
