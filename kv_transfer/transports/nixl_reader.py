"""One NIXL agent that only reads: posts reads into this worker's pool, and can be destroyed and replaced.

NIXL cannot take a posted read back, and a transfer of many descriptors that reports an error may have others under
way. What is certain to be over is a read that ended DONE, and every read of an agent that is destroyed. So an agent
of which one read failed is `tainted`: it takes no new reads, and when its other reads have ended it is destroyed.

Memory that NIXL may touch, and what keeps it alive and in place:
  pool slabs      held by this object until the agent is destroyed; a page that a read fills gets no other owner before
                  that read's DONE or FAILED, and FAILED is said of a posted read only after `destroy`
  landing         (generations of a peer) freed when all its reads ended DONE, else after the agent
  prepared lists, requests   hold the C++ agent, so `destroy` lets go of them first, then of the agent, then of landings
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from engine.core.errors import Incompatible, TransferFailed
from engine.core.types import NUM_SPARE_PAGES, KVLayout, Memory
from kv_transfer.reslice import Cut, blocks
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead

PROGRESS_TIMEOUT_US = 1000
"""NIXL's progress thread sleeps until UCX wakes it, or this long. NIXL's Python agent sets 0, with which the thread
spins on a core of every worker (poll() with no timeout, ucx_backend.cpp: nixlUcxSharedThread::run)."""
GENERATION_BYTES = 8
_LOCAL_SIDE = "NIXL_INIT_AGENT"
Prepared = dict[tuple[int, tuple[int, int]], Any]
"""Lists of the slabs of one rank, by rank and range of layers."""
Table = "np.ndarray[Any, np.dtype[np.uint64]]"


class Nixl:
    """The library: NIXL's Python modules of whichever distribution is installed."""

    def __init__(self, backend: str = "UCX", *, only_here: bool = False) -> None:
        """`only_here`: peers are on this host, so agents listen on no address that others could reach.

        Raises TransferFailed if none is installed.
        """
        self._api, self._bindings = _load()
        self._backend = backend
        # Of UCX's network devices only: shared memory and NVLink are other kinds. An operator's own choice counts.
        self._settings = (
            {"engine_config": "NET_DEVICES=lo"} if only_here and "UCX_NET_DEVICES" not in os.environ else {}
        )
        self.errors: tuple[type[Exception], ...] = tuple(
            value for key, value in vars(self._bindings).items() if key.startswith("nixl") and key.endswith("Error")
        )
        self.lost: type[Exception] = self._bindings.nixlRemoteDisconnectError

    def agent(self, name: str) -> Any:
        """NIXL's Python agent around a C++ agent whose progress thread sleeps: the Python one has no setting for it."""
        config = self._bindings.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = PROGRESS_TIMEOUT_US
        agent = self._api.nixl_agent(name, self._api.nixl_agent_config(enable_prog_thread=False, backends=[]))
        agent.agent = self._bindings.nixlAgent(name, config)
        agent.create_backend(self._backend, self._settings)
        return agent

    def failure(self, op: int, error: Exception, status: OpStatus = OpStatus.FAILED) -> Completion:
        """What is said of a read that failed so."""
        return Completion(op, status, peer_lost=isinstance(error, self.lost), message=f"NIXL: {error}")


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a peer's memory is, as its descriptor says."""

    agent: str
    memories: tuple[Memory, ...]
    """By rank."""
    num_slabs: int
    generations: int
    """Address."""
    layout: KVLayout
    metadata: bytes


@dataclass(slots=True)
class _Peer:
    """A remote agent, and what was prepared for it."""

    remote: Remote
    landing: "np.ndarray[Any, np.dtype[np.uint64]]"
    """Generations read from this peer land here, at the remote page's index. Two reads of one page may overlap: both
    then see the later value, which is as good, since a generation only grows."""
    landing_registration: Any
    landing_side: Any
    generations_side: Any
    pages: Prepared = field(default_factory=dict)
    """Of remote pages; between equal layouts only."""
    connected: bool = True
    num_in_flight: int = 0


@dataclass(slots=True)
class _Op:
    """A posted read."""

    peer: _Peer
    handle: Any
    num_bytes: int
    generations_of: Sequence[int]


class NixlReader:
    """See the module's text. Used by one thread."""

    def __init__(self, nixl: Nixl, pool: PagePool, name: str) -> None:
        """Make the agent and register the pool. Raises TransferFailed."""
        self._nixl, self._pool, self._memories = nixl, pool, tuple(pool.memories)
        self._num_slabs = pool.num_pages + NUM_SPARE_PAGES
        self._peers: dict[str, _Peer] = {}
        self._ops: dict[int, _Op] = {}
        self._failed: list[tuple[_Op, Completion]] = []
        """Reads that ended in error, and what is said of them when the agent is destroyed."""
        self.tainted = False
        """A read ended in error: post nothing more."""
        self._pages: Prepared = {}
        """Of this pool's pages."""
        try:
            self._agent = nixl.agent(name)
            register_slabs(self._agent, pool)
        except nixl.errors as error:
            raise TransferFailed(f"NIXL: {error}") from error

    @property
    def busy(self) -> bool:
        """Reads are in flight, besides those that ended in error."""
        return bool(self._ops)

    def connect(self, remote: Remote) -> None:
        """Load the peer's agent and prepare its lists, unless that was done. Raises Incompatible or TransferFailed."""
        known = self._peers.get(remote.agent)
        if known is not None:
            known.connected = True  # its last reads had not ended yet
            return
        try:
            loaded = self._agent.add_remote_agent(remote.metadata)
        except self._nixl.errors as error:
            raise TransferFailed(f"NIXL: {error}") from error
        agent = loaded.decode() if isinstance(loaded, bytes) else loaded
        if agent != remote.agent:
            self._agent.remove_remote_agent(agent)
            raise Incompatible(f"the NIXL descriptor of {remote.agent} belongs to {agent}")
        try:
            self._peers[agent] = self._prepare(remote)
        except self._nixl.errors as error:
            self._agent.remove_remote_agent(agent)
            raise TransferFailed(f"NIXL: {error}") from error

    def disconnect(self, peer: str) -> None:
        """The remote agent is removed when its last read has ended."""
        known = self._peers.get(peer)
        if known is not None:
            known.connected = False
            self._remove_if_unused(known)

    def read_pages(self, read: PageRead) -> list[Completion]:
        """Post one read from a connected peer; what can be said of it at once."""
        peer = self._peers[read.peer]
        try:
            handle = self._whole_pages(peer, read) if read.cut is None else self._parts(peer, read, read.cut)
        except self._nixl.errors as error:
            return [self._nixl.failure(read.op, error)]
        return self._post(read.op, _Op(peer, handle, read.num_bytes(self._pool.layout), ()))

    def read_generations(self, op: int, key: str, pages: Sequence[int]) -> list[Completion]:
        """Post a read of generations: 8 bytes a page, neighbours merged."""
        peer, indices = self._peers[key], _indices(pages)
        try:
            handle = self._agent.make_prepped_xfer("READ", peer.landing_side, indices, peer.generations_side, indices)
        except self._nixl.errors as error:
            return [self._nixl.failure(op, error)]
        return self._post(op, _Op(peer, handle, len(pages) * GENERATION_BYTES, pages))

    def poll(self) -> list[Completion]:
        """Ask NIXL about every read in flight: those that are DONE, and those that are FAILING from now on."""
        ended: list[Completion] = []
        for number, op in list(self._ops.items()):
            try:
                ended += self._judge(number, op, self._agent.check_xfer_state(op.handle))
            except self._nixl.errors as error:
                ended += self._fail(number, op, self._nixl.failure(number, error))
        return ended

    def destroy(self) -> list[Completion]:
        """End the agent, and with it whatever is still in flight: afterwards it touches no memory. Idempotent."""
        failed = [completion for _, completion in self._failed]
        failed += [Completion(number, OpStatus.FAILED, message="the agent was destroyed") for number in self._ops]
        landings = [peer.landing for peer in self._peers.values()]  # memory that must outlive the agent
        self._failed.clear()
        self._ops.clear()
        self._peers.clear()
        self._pages.clear()
        self._agent = None
        landings.clear()
        return failed

    # ------------------------------------------------------------ inside

    def _prepare(self, remote: Remote) -> _Peer:
        landing = np.zeros(remote.num_slabs, dtype=np.uint64)
        here, count = landing.ctypes.data, remote.num_slabs
        registration = self._agent.register_memory([(here, landing.nbytes, 0, "")], "DRAM")
        local = self._strided(_LOCAL_SIDE, (here, GENERATION_BYTES, 0, GENERATION_BYTES, count), "DRAM")
        there = (remote.generations, GENERATION_BYTES, 0, GENERATION_BYTES, count)
        return _Peer(remote, landing, registration, local, self._strided(remote.agent, there, "DRAM"))

    def _whole_pages(self, peer: _Peer, read: PageRead) -> Any:
        """Equal layouts: one descriptor a page, prepared once for each range of layers; neighbours merge."""
        remote, layers = peer.remote, (read.layer_begin, read.layer_end)
        here, there = (read.dst_rank, layers), (read.src_rank, layers)
        if here not in self._pages:
            memory = self._memories[read.dst_rank]
            self._pages[here] = self._slabs(_LOCAL_SIDE, memory, self._num_slabs, layers)
        if there not in peer.pages:
            memory = remote.memories[read.src_rank]
            peer.pages[there] = self._slabs(remote.agent, memory, remote.num_slabs, layers)
        sides = self._pages[here], _indices(read.dst), peer.pages[there], _indices(read.src)
        return self._agent.make_prepped_xfer("READ", *sides)

    def _parts(self, peer: _Peer, read: PageRead, cut: Cut) -> Any:
        """Unequal layouts: a descriptor for each contiguous run of each page, made for this read."""
        pool, remote = self._pool, peer.remote
        runs = [
            (block.src_offset + i * block.src_stride, block.dst_offset + i * block.dst_stride, block.num_bytes)
            for block in blocks(cut, pool.layout, remote.layout, (read.layer_begin, read.layer_end))
            for i in range(block.count)
        ]
        src, dst, lengths = np.array(runs, dtype=np.uint64).T
        source, target = remote.memories[read.src_rank], self._memories[read.dst_rank]
        there = _table(source, remote.layout.page_bytes, read.src, src, lengths)
        here = _table(target, pool.layout.page_bytes, read.dst, dst, lengths)
        local = self._agent.get_xfer_descs(here, memory_of(target.device))
        distant = self._agent.get_xfer_descs(there, memory_of(source.device))
        return self._agent.initialize_xfer("READ", local, distant, remote.agent)

    def _slabs(self, agent: str, memory: Memory, num_slabs: int, layers: tuple[int, int]) -> Any:
        page_bytes = self._pool.layout.page_bytes
        layer_bytes = page_bytes // self._pool.layout.num_layers
        start, length = memory.address + layers[0] * layer_bytes, (layers[1] - layers[0]) * layer_bytes
        block = (start, length, max(memory.device, 0), page_bytes, num_slabs)
        return self._strided(agent, block, memory_of(memory.device))

    def _strided(self, agent: str, block: tuple[int, int, int, int, int], memory: str) -> Any:
        """`block`: address, length, device, stride, count."""
        return self._agent.prep_xfer_dlist(agent, np.array([block], dtype=np.uint64), memory)

    def _post(self, number: int, op: _Op) -> list[Completion]:
        op.peer.num_in_flight += 1
        self._ops[number] = op
        try:
            return self._judge(number, op, self._agent.transfer(op.handle))
        except self._nixl.errors as error:
            return self._fail(number, op, self._nixl.failure(number, error))

    def _judge(self, number: int, op: _Op, state: str) -> list[Completion]:
        """Take what NIXL says of a read. DONE proves delivery and nothing else."""
        if state == "PROC":
            return []
        if state != "DONE":
            return self._fail(number, op, Completion(number, OpStatus.FAILED, message="NIXL: the read ended in error"))
        generations = tuple(int(op.peer.landing[page]) for page in op.generations_of)
        op.handle.release()
        del self._ops[number]
        op.peer.num_in_flight -= 1
        self._remove_if_unused(op.peer)
        return [Completion(number, OpStatus.DONE, op.num_bytes, generations)]

    def _fail(self, number: int, op: _Op, failed: Completion) -> list[Completion]:
        """From here on the agent is tainted; the request and its peer stay, since landings may still be written."""
        del self._ops[number]
        self._failed.append((op, failed))
        self.tainted = True
        return [Completion(number, OpStatus.FAILING, peer_lost=failed.peer_lost, message=failed.message)]

    def _remove_if_unused(self, peer: _Peer) -> None:
        if peer.connected or peer.num_in_flight or self.tainted:
            return
        del self._peers[peer.remote.agent]
        try:
            for prepared in (peer.generations_side, peer.landing_side, *peer.pages.values()):
                prepared.release()
            self._agent.deregister_memory(peer.landing_registration)
            self._agent.remove_remote_agent(peer.remote.agent)
        except self._nixl.errors:
            self._peers[peer.remote.agent] = peer  # keeps the landing
            self.tainted = True


def _load() -> tuple[ModuleType, ModuleType]:
    reasons = []
    for package in ("nixl_cu13", "nixl"):
        try:
            return import_module(f"{package}._api"), import_module(f"{package}._bindings")
        except ImportError as error:
            reasons.append(str(error))
    raise TransferFailed(f"NIXL cannot be imported: {'; '.join(reasons)}")


def memory_of(device: int) -> str:
    """NIXL's word for the memory of a pool's device."""
    return "DRAM" if device < 0 else "VRAM"


def register_slabs(agent: Any, pool: PagePool) -> None:
    """All slabs of all ranks, for reads into them and out of them."""
    num_bytes = (pool.num_pages + NUM_SPARE_PAGES) * pool.layout.page_bytes
    for memory in pool.memories:
        agent.register_memory([(memory.address, num_bytes, max(memory.device, 0), "")], memory_of(memory.device))


def _table(
    memory: Memory, page_bytes: int, pages: Sequence[int], offsets: Any, lengths: Any
) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Descriptors (address, bytes, device) of all runs of all pages, in the pages' order."""
    starts = np.uint64(memory.address) + np.asarray(pages, dtype=np.uint64) * np.uint64(page_bytes)
    table = np.empty((len(pages), len(offsets), 3), dtype=np.uint64)
    table[:, :, 0] = starts[:, None] + offsets[None, :]
    table[:, :, 1] = lengths
    table[:, :, 2] = max(memory.device, 0)
    return table.reshape(-1, 3)


def _indices(pages: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.asarray(pages, dtype=np.int32)
