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
from engine.core.types import KVLayout, WorkerInfo
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
    """The memory that pages live in, as a transport sees it. engine.runtime's KV pool is one, HostPool another.

    There are `num_pages + NUM_SPARE_PAGES` slabs, back to back from `address`. `read` and `write` may be called from
    any thread; on a device pool they copy to or from the host and return when the copy is done.
    """

    @property
    def layout(self) -> KVLayout:
        """`layout.page_bytes` is the size of one slab; each of its layers is an equal, contiguous part of it."""

    @property
    def num_pages(self) -> int:
        """Pages that the allocator deals out; the spare ones follow."""

    @property
    def address(self) -> int:
        """Of slab 0, in the memory of `device`."""

    @property
    def device(self) -> int:
        """CUDA ordinal; -1 is host memory."""

    @property
    def generations(self) -> memoryview:
        """Host memory, writable, format "Q": one counter a slab. The allocator bumps, transports only read."""

    def read(self, page: int, layer_begin: int, layer_end: int) -> memoryview:
        """Bytes of those layers of one page: the memory itself on the host, a copy of it on a device."""

    def write(self, page: int, layer_begin: int, layer_end: int, data: memoryview | bytes | bytearray) -> None:
        """Overwrite those layers of one page with `data`, which has exactly their size."""


def fetch(pool: PagePool, index: int, read: PageRead) -> memoryview | bytearray:
    """What `read` asks of its page number `index`, out of the source's pool."""
    layers = (read.layer_begin, read.layer_end)
    view = pool.read(read.src[index], *layers)
    return view if read.cut is None else gather(view, pool.layout, read.cut.src, layers[1] - layers[0])


def store(pool: PagePool, index: int, read: PageRead, data: memoryview | bytearray) -> None:
    """Put what `fetch` gave into the reader's page. On a device, a part of a page costs a copy of it both ways."""
    page, layers = read.dst[index], (read.layer_begin, read.layer_end)
    if read.cut is None:
        pool.write(page, *layers, data)
        return
    view = pool.read(page, *layers)
    if pool.device >= 0:
        view = memoryview(bytearray(view))
    scatter(memoryview(data), view, pool.layout, read.cut.dst, layers[1] - layers[0])
    if pool.device >= 0:
        pool.write(page, *layers, view)


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
