"""The one way pages move: the side that owns the destination memory reads (decode pulls).

A transport moves bytes and reports; it proves nothing (kv_transfer.session does). It is owned by one thread, the
transfer manager's: no method is called from any other thread, and no method blocks for the length of a transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from engine.core.errors import Incompatible
from engine.core.types import NUM_SPARE_PAGES as NUM_SPARE_PAGES
from engine.core.types import KVLayout, Memory, WorkerInfo
from kv_transfer.reslice import Cut, gather, scatter


class OpStatus(StrEnum):
    """What became of one posted operation. DONE and FAILED are terminal: the transport touches the memory no more."""

    DONE = "done"
    FAILED = "failed"
    FAILING = "failing"
    """It will not succeed, but bytes of it may still land; FAILED follows."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One operation ended, or is FAILING. `generations`, one an asked page, is empty but for a read of generations."""

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
    cut: Cut | None = None
    """The part of each page that moves; None between equal layouts: all of it, one contiguous range."""
    src_rank: int = 0
    """Whose memory the remote pages are read from, and"""
    dst_rank: int = 0
    """whose memory here they are read into."""

    def num_bytes(self, layout: KVLayout) -> int:
        """That it moves into pages of `layout`."""
        num_layers = self.layer_end - self.layer_begin
        if self.cut is None:
            return len(self.src) * num_layers * (layout.page_bytes // layout.num_layers)
        return len(self.src) * self.cut.dst.num_bytes(layout, num_layers)


def peer_key(worker_id: str, incarnation: int) -> str:
    """The name of one incarnation of one worker: what operations, agents and breakers are keyed by."""
    return f"{worker_id}@{incarnation:016x}"


def descriptor_of(info: WorkerInfo, transport: str) -> bytes:
    """What `info` says for readers over `transport`. Raises Incompatible if it does not speak it."""
    for name, descriptor in info.transports:
        if name == transport:
            return descriptor
    raise Incompatible(f"worker {info.id} does not speak {transport}")


class PagePool(Protocol):
    """The memory that pages of a worker live in, as a transport sees it: engine.runtime's KV pool, or HostPool.

    On each rank there are `num_pages + NUM_SPARE_PAGES` slabs, back to back. A page is the slab of that number on every
    rank: its heads of the same tokens. `read` and `write` may be called from any thread; on a device pool they copy to
    or from the host and return when the copy is done.
    """

    @property
    def layout(self) -> KVLayout:
        """`layout.page_bytes` is the size of one slab; each of its layers is an equal, contiguous part of it. There are
        `layout.tp_size` ranks."""

    @property
    def num_pages(self) -> int:
        """Pages that the allocator deals out; the spare ones follow."""

    @property
    def memories(self) -> Sequence[Memory]:
        """Where each rank's slabs are."""

    @property
    def generations(self) -> memoryview:
        """Host memory, writable, format "Q": one counter a page, not a rank's. The allocator bumps, transports read."""

    def read(self, page: int, layer_begin: int, layer_end: int, rank: int = 0) -> memoryview:
        """Bytes of those layers of one slab: the memory itself on the host, a copy of it on a device."""

    def write(
        self, page: int, layer_begin: int, layer_end: int, data: memoryview | bytes | bytearray, rank: int = 0
    ) -> None:
        """Overwrite those layers of one slab with `data`, which has exactly their size."""


def fetch(pool: PagePool, index: int, read: PageRead) -> memoryview | bytearray:
    """What `read` asks of its page number `index`, out of the source's pool."""
    layers = (read.layer_begin, read.layer_end)
    view = pool.read(read.src[index], *layers, read.src_rank)
    return view if read.cut is None else gather(view, pool.layout, read.cut.src, layers[1] - layers[0])


def store(pool: PagePool, index: int, read: PageRead, data: memoryview | bytearray) -> None:
    """Put what `fetch` gave into the reader's page. On a device, a part of a page costs a copy of it both ways."""
    page, layers, rank = read.dst[index], (read.layer_begin, read.layer_end), read.dst_rank
    if read.cut is None:
        pool.write(page, *layers, data, rank)
        return
    view = pool.read(page, *layers, rank)
    on_device = pool.memories[rank].device >= 0
    if on_device:
        view = memoryview(bytearray(view))
    scatter(memoryview(data), view, pool.layout, read.cut.dst, layers[1] - layers[0])
    if on_device:
        pool.write(page, *layers, view, rank)


class Transport(Protocol):
    """Seven methods; see the module's text for the threading rule."""

    name: str

    def descriptor(self) -> bytes:
        """What a peer needs to read this worker's pages and generations. No pickle; authenticated by the caller."""

    def connect(self, info: WorkerInfo) -> None:
        """Make the peer's pages readable. Raises Incompatible or TransferFailed with the reason in words."""

    def disconnect(self, peer: str) -> None:
        """Post nothing more to that incarnation. Operations in flight still end with a Completion: soon where the
        transport can take them back, else whenever they end. `connect` may follow. Unknown peers are ignored."""

    def read_pages(self, read: PageRead) -> None:
        """Post one read. It ends with exactly one DONE or FAILED, also when the peer is lost or was never connected."""

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of the generations of remote `pages`, ordered after every read that has completed."""

    def poll(self) -> list[Completion]:
        """Operations that ended, or began to fail, since the last call; empty when none did. Never waits."""

    def close(self) -> None:
        """End everything. After it returns no memory is touched."""
