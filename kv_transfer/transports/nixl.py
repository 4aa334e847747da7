"""Pages over NIXL (UCX): RDMA between machines, NVLink or shared memory inside one, host or GPU memory.

Facts of NIXL 1.5 that shape this file: an agent has no thread safety, so one thread uses it (the module's rule for all
transports); a posted read cannot be taken back; an agent's name must never come back with other memory behind it, so
it is the incarnation's; a descriptor costs 8 us whatever its size, so between equal layouts a page (or its layers of
one group) is one, prepared once per pair, and neighbours merge.

A worker has one agent that is read from, for its whole life: peers know it by name. It reads with another one
(nixl_reader), so that an agent of which a read failed can be destroyed, which is the only certain end of such a read.
The pool and its generations outlive both: this object holds the pool, and `close` destroys the agents before it
returns.
"""

import struct
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from engine.core.errors import Incompatible, TransferFailed
from engine.core.types import NUM_SPARE_PAGES, KVLayout, Memory, WorkerInfo
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead, descriptor_of, peer_key
from kv_transfer.transports.nixl_reader import GENERATION_BYTES, Nixl, NixlReader, Remote, register_slabs

_DESCRIPTOR = struct.Struct("<QIQB")
"""Bytes of a slab, slabs, address of the generations, ranks; a _MEMORY for each rank and NIXL's own metadata follow."""
_MEMORY = struct.Struct("<Qi")
"""Address of the first slab, device."""
CLOSE_S = 1.0


class NixlTransport:
    """A Transport over NIXL agents."""

    name = "nixl"

    def __init__(self, pool: PagePool, name: str, backend: str = "UCX", *, only_here: bool = False) -> None:
        """Make the agents and register the pool and its generations; `name` is this worker's own peer_key.

        `only_here`: all peers are on this host.

        Raises:
            TransferFailed: NIXL is not installed, or refuses.
        """
        self._nixl = Nixl(backend, only_here=only_here)
        self._pool, self._name = pool, name
        self._num_slabs = pool.num_pages + NUM_SPARE_PAGES
        self._generations = pool.generations
        self._remotes: dict[str, Remote] = {}
        """The connected peers."""
        self._ended: list[Completion] = []
        self._numbers = count()
        self._tainted: list[NixlReader] = []
        """They wait for their last reads."""
        self._serving: Any = self._serve()
        self._reader: NixlReader | None = self._new_reader()

    def descriptor(self) -> bytes:
        """Where the pages and generations are, and NIXL's metadata with the keys to read them."""
        pool = self._pool
        counters, memories = _address(self._generations), pool.memories
        head = _DESCRIPTOR.pack(pool.layout.page_bytes, self._num_slabs, counters, len(memories))
        ranks = b"".join(_MEMORY.pack(memory.address, memory.device) for memory in memories)
        return head + ranks + bytes(self._serving.get_agent_metadata())

    def connect(self, info: WorkerInfo) -> None:
        """Load the peer's agent and prepare its lists. Raises Incompatible or TransferFailed."""
        key = peer_key(info.id, info.incarnation)
        remote = _remote(key, descriptor_of(info, self.name), info.layout)
        self._current().connect(remote)
        self._remotes[key] = remote

    def disconnect(self, peer: str) -> None:
        """Post nothing more; the agent is removed when its last read has ended."""
        if self._remotes.pop(peer, None) is not None and self._reader is not None:
            self._reader.disconnect(peer)

    def read_pages(self, read: PageRead) -> None:
        """Post one read."""
        reader = self._reader_of(read.op, read.peer)
        if reader is not None:
            self._ended += reader.read_pages(read)

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of generations: 8 bytes a page, neighbours merged."""
        reader = self._reader_of(op, peer)
        if reader is not None:
            self._ended += reader.read_generations(op, peer, pages)

    def poll(self) -> list[Completion]:
        """Ask NIXL about every read in flight; destroy tainted agents when their other reads have ended."""
        if self._reader is not None:
            self._ended += self._reader.poll()
            if self._reader.tainted:
                self._tainted.append(self._reader)
                self._reader = None
        for reader in list(self._tainted):
            self._ended += reader.poll()
            if not reader.busy:
                self._tainted.remove(reader)
                self._ended += reader.destroy()
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Destroy the agents, and with them whatever is still in flight after CLOSE_S. Idempotent."""
        give_up_s = time.monotonic() + CLOSE_S
        while self._busy and time.monotonic() < give_up_s:
            self.poll()
            time.sleep(0.001)
        for reader in (*self._tainted, *([self._reader] if self._reader is not None else [])):
            reader.destroy()
        self._tainted.clear()
        self._remotes.clear()
        self._reader = self._serving = None

    # ------------------------------------------------------------ inside

    @property
    def _busy(self) -> bool:
        return bool(self._tainted) or (self._reader is not None and self._reader.busy)

    def _serve(self) -> Any:
        pool = self._pool
        try:
            agent = self._nixl.agent(self._name)
            register_slabs(agent, pool)
            counters = (_address(self._generations), self._num_slabs * GENERATION_BYTES, 0, "")
            agent.register_memory([counters], "DRAM")
        except self._nixl.errors as error:
            raise TransferFailed(f"NIXL: {error}") from error
        return agent

    def _new_reader(self) -> NixlReader:
        return NixlReader(self._nixl, self._pool, f"{self._name} reader {next(self._numbers)}")

    def _current(self) -> NixlReader:
        """The agent to read with: a new one if the last is tainted. Raises TransferFailed."""
        if self._reader is not None and self._reader.tainted:
            self._tainted.append(self._reader)
            self._reader = None
        if self._reader is None:
            self._reader = self._new_reader()
        return self._reader

    def _reader_of(self, op: int, peer: str) -> NixlReader | None:
        """The agent to read from that peer with; None if it cannot be read from, which is then said."""
        remote = self._remotes.get(peer)
        if remote is None:
            self._ended.append(Completion(op, OpStatus.FAILED, peer_lost=True, message="not connected"))
            return None
        try:
            reader = self._current()
            reader.connect(remote)
        except (Incompatible, TransferFailed) as error:
            self._ended.append(Completion(op, OpStatus.FAILED, peer_lost=True, message=error.message))
            return None
        return reader


def _remote(key: str, descriptor: bytes, layout: KVLayout) -> Remote:
    """The peer's memory. Raises Incompatible if the descriptor is not that of such a layout."""
    if len(descriptor) <= _DESCRIPTOR.size:
        raise Incompatible(f"the NIXL descriptor of {key} is cut off")
    page_bytes, num_slabs, counters, num_ranks = _DESCRIPTOR.unpack_from(descriptor)
    if page_bytes != layout.page_bytes:
        raise Incompatible(f"{key} says that its pages have {layout.page_bytes} bytes; they have {page_bytes}")
    if num_ranks != layout.tp_size:
        raise Incompatible(f"{key} says that it has {layout.tp_size} ranks; it has {num_ranks}")
    metadata = descriptor[_DESCRIPTOR.size + num_ranks * _MEMORY.size :]
    if not metadata:
        raise Incompatible(f"the NIXL descriptor of {key} is cut off")
    ranks = descriptor[_DESCRIPTOR.size : len(descriptor) - len(metadata)]
    memories = tuple(Memory(address, device) for address, device in _MEMORY.iter_unpack(ranks))
    return Remote(key, memories, num_slabs, counters, layout, metadata)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint64).ctypes.data)
