"""Pages over NIXL (UCX): RDMA between machines, NVLink or shared memory inside one, host or GPU memory.

Facts of NIXL 1.5 that shape this file: an agent has no thread safety, so one thread uses it (the module's rule for all
transports); a posted read cannot be taken back, so a peer that was disconnected is removed only when its last read has
ended; an agent's name must never come back with other memory behind it, so it is the incarnation's; a descriptor costs
8 us whatever its size, so a page (or its layers of one group) is one, prepared once per pair, and neighbours merge.
"""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from engine.core.errors import Incompatible, TransferFailed
from engine.core.types import NUM_SPARE_PAGES, WorkerInfo
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead, descriptor_of, peer_key

_DESCRIPTOR = struct.Struct("<QQIiQ")
"""Address and bytes of a slab, slabs, device, address of the generations; NIXL's own metadata follows."""
CLOSE_S = 1.0
PROGRESS_TIMEOUT_US = 1000
"""NIXL's progress thread sleeps until UCX wakes it, or this long. NIXL's Python agent sets 0, with which the thread
spins on a core of every worker (poll() with no timeout, ucx_backend.cpp: nixlUcxSharedThread::run)."""
_LOCAL_SIDE = "NIXL_INIT_AGENT"
_GENERATION_BYTES = 8


def load_nixl() -> tuple[ModuleType, ModuleType]:
    """NIXL's Python modules (api, bindings), of whichever distribution is installed. Raises TransferFailed."""
    reasons = []
    for package in ("nixl_cu13", "nixl"):
        try:
            return import_module(f"{package}._api"), import_module(f"{package}._bindings")
        except ImportError as error:
            reasons.append(str(error))
    raise TransferFailed(f"NIXL cannot be imported: {'; '.join(reasons)}")


@dataclass(slots=True)
class _Peer:
    """A remote agent: where its memory is, and what was prepared for it."""

    agent: str
    num_slabs: int
    address: int
    device: int
    landing: "np.ndarray[Any, np.dtype[np.uint64]]"
    """Generations read from this peer land here, at the remote page's index. Two reads of one page may overlap: both
    then see the later value, which is as good, since a generation only grows."""
    generations: Any
    """Prepared lists of the remote generations and of `landing`."""
    landing_side: Any
    landing_registration: Any
    pages: dict[tuple[int, int], Any] = field(default_factory=dict)
    """Prepared lists of remote pages, by range of layers."""
    connected: bool = True
    num_in_flight: int = 0


@dataclass(slots=True)
class _Op:
    """A posted read."""

    peer: _Peer
    handle: Any
    num_bytes: int
    generations_of: Sequence[int]


class NixlTransport:
    """A Transport over one NIXL agent."""

    name = "nixl"

    def __init__(self, pool: PagePool, name: str, backend: str = "UCX") -> None:
        """Make the agent and register the pool and its generations; `name` is this worker's own peer_key.

        Raises:
            TransferFailed: NIXL is not installed, or refuses.
        """
        api, bindings = load_nixl()
        self._errors: tuple[type[Exception], ...] = tuple(
            value for key, value in vars(bindings).items() if key.startswith("nixl") and key.endswith("Error")
        )
        self._lost: type[Exception] = bindings.nixlRemoteDisconnectError
        self._pool = pool
        self._num_slabs = pool.num_pages + NUM_SPARE_PAGES
        self._peers: dict[str, _Peer] = {}
        self._ops: dict[int, _Op] = {}
        self._ended: list[Completion] = []
        self._pages: dict[tuple[int, int], Any] = {}
        """Prepared lists of this pool's pages, by range of layers."""
        try:
            self._agent = _make_agent(api, bindings, name, backend)
            slabs = (pool.address, self._num_slabs * pool.layout.page_bytes, max(pool.device, 0), "")
            self._agent.register_memory([slabs], _memory(pool.device))
            counters = (_address(pool.generations), self._num_slabs * _GENERATION_BYTES, 0, "")
            self._agent.register_memory([counters], "DRAM")
            self._metadata: bytes = self._agent.get_agent_metadata()
        except self._errors as error:
            raise TransferFailed(f"NIXL: {error}") from error

    def descriptor(self) -> bytes:
        """Where the pages and generations are, and NIXL's metadata with the keys to read them."""
        pool = self._pool
        counters = _address(pool.generations)
        head = _DESCRIPTOR.pack(pool.address, pool.layout.page_bytes, self._num_slabs, pool.device, counters)
        return head + self._metadata

    def connect(self, info: WorkerInfo) -> None:
        """Load the peer's agent and prepare its lists. Raises Incompatible or TransferFailed."""
        key = peer_key(info.id, info.incarnation)
        known = self._peers.get(key)
        if known is not None:
            known.connected = True  # its last reads had not ended yet
            return
        descriptor = descriptor_of(info, self.name)
        if len(descriptor) <= _DESCRIPTOR.size:
            raise Incompatible(f"the NIXL descriptor of {key} is cut off")
        here, there = self._pool.layout.page_bytes, _DESCRIPTOR.unpack_from(descriptor)[1]
        if here != there:
            raise Incompatible(f"pages of {here} bytes here, of {there} at {key}")
        try:
            agent = self._agent.add_remote_agent(descriptor[_DESCRIPTOR.size :])
        except self._errors as error:
            raise TransferFailed(f"NIXL: {error}") from error
        agent = agent.decode() if isinstance(agent, bytes) else agent
        if agent != key:
            self._agent.remove_remote_agent(agent)
            raise Incompatible(f"the NIXL descriptor of {key} belongs to {agent}")
        try:
            self._peers[key] = self._prepare(agent, descriptor)
        except self._errors as error:
            self._agent.remove_remote_agent(agent)
            raise TransferFailed(f"NIXL: {error}") from error

    def disconnect(self, peer: str) -> None:
        """Post nothing more; the agent is removed when its last read has ended."""
        known = self._peers.get(peer)
        if known is not None:
            known.connected = False
            self._remove_if_unused(peer, known)

    def read_pages(self, read: PageRead) -> None:
        """Post one read."""
        peer = self._peers.get(read.peer)
        if peer is None or not peer.connected:
            self._ended.append(_failed(read.op, "not connected", lost=True))
            return
        layers = (read.layer_begin, read.layer_end)
        layer_bytes = self._pool.layout.page_bytes // self._pool.layout.num_layers
        num_bytes = len(read.src) * (read.layer_end - read.layer_begin) * layer_bytes
        try:
            local, remote = self._page_sides(peer, layers)
            handle = self._agent.make_prepped_xfer("READ", local, _indices(read.dst), remote, _indices(read.src))
        except self._errors as error:
            self._ended.append(self._failure(read.op, error))
            return
        self._post(read.op, _Op(peer, handle, num_bytes, ()))

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of generations: 8 bytes a page, neighbours merged."""
        known = self._peers.get(peer)
        if known is None or not known.connected:
            self._ended.append(_failed(op, "not connected", lost=True))
            return
        indices = _indices(pages)
        try:
            handle = self._agent.make_prepped_xfer("READ", known.landing_side, indices, known.generations, indices)
        except self._errors as error:
            self._ended.append(self._failure(op, error))
            return
        self._post(op, _Op(known, handle, len(pages) * _GENERATION_BYTES, pages))

    def poll(self) -> list[Completion]:
        """Ask NIXL about every read in flight."""
        for number, op in list(self._ops.items()):
            try:
                self._finish(number, op, self._agent.check_xfer_state(op.handle))
            except self._errors as error:
                self._forget(number, op, self._failure(number, error))
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Destroy the agent, and with it whatever is still in flight after CLOSE_S. Idempotent."""
        give_up_s = time.monotonic() + CLOSE_S
        while self._ops and time.monotonic() < give_up_s:
            self.poll()
            time.sleep(0.001)
        landings = [peer.landing for peer in self._peers.values()]  # memory that must outlive the agent
        self._ops.clear()
        self._peers.clear()
        self._pages.clear()
        self._agent = None
        landings.clear()

    # ------------------------------------------------------------ inside

    def _prepare(self, agent: str, descriptor: bytes) -> _Peer:
        address, _, num_slabs, device, counters = _DESCRIPTOR.unpack_from(descriptor)
        landing = np.zeros(num_slabs, dtype=np.uint64)
        here = landing.ctypes.data
        registration = self._agent.register_memory([(here, landing.nbytes, 0, "")], "DRAM")
        remote = self._strided(agent, (counters, _GENERATION_BYTES, 0, _GENERATION_BYTES, num_slabs), "DRAM")
        local = self._strided(_LOCAL_SIDE, (here, _GENERATION_BYTES, 0, _GENERATION_BYTES, num_slabs), "DRAM")
        return _Peer(agent, num_slabs, address, device, landing, remote, local, registration)

    def _page_sides(self, peer: _Peer, layers: tuple[int, int]) -> tuple[Any, Any]:
        """Prepared lists of those layers of every page, here and there."""
        pool = self._pool
        if layers not in self._pages:
            self._pages[layers] = self._slabs(_LOCAL_SIDE, pool.address, self._num_slabs, pool.device, layers)
        if layers not in peer.pages:
            peer.pages[layers] = self._slabs(peer.agent, peer.address, peer.num_slabs, peer.device, layers)
        return self._pages[layers], peer.pages[layers]

    def _slabs(self, agent: str, address: int, num_slabs: int, device: int, layers: tuple[int, int]) -> Any:
        page_bytes = self._pool.layout.page_bytes
        layer_bytes = page_bytes // self._pool.layout.num_layers
        start, length = address + layers[0] * layer_bytes, (layers[1] - layers[0]) * layer_bytes
        return self._strided(agent, (start, length, max(device, 0), page_bytes, num_slabs), _memory(device))

    def _strided(self, agent: str, block: tuple[int, int, int, int, int], memory: str) -> Any:
        """`block`: address, length, device, stride, count."""
        return self._agent.prep_xfer_dlist(agent, np.array([block], dtype=np.uint64), memory)

    def _post(self, number: int, op: _Op) -> None:
        op.peer.num_in_flight += 1
        self._ops[number] = op
        try:
            self._finish(number, op, self._agent.transfer(op.handle))
        except self._errors as error:
            self._forget(number, op, self._failure(number, error))

    def _finish(self, number: int, op: _Op, state: str) -> None:
        """Take what NIXL says of a read. DONE proves delivery and nothing else."""
        if state == "DONE":
            generations = tuple(int(op.peer.landing[page]) for page in op.generations_of)
            self._forget(number, op, Completion(number, OpStatus.DONE, op.num_bytes, generations))
        elif state != "PROC":
            self._forget(number, op, _failed(number, "NIXL: the read ended in error", lost=False))

    def _forget(self, number: int, op: _Op, completion: Completion) -> None:
        del self._ops[number]
        op.peer.num_in_flight -= 1
        try:
            op.handle.release()
        except self._errors:
            pass  # a read that failed may not be released; its handle is freed with the agent
        self._ended.append(completion)
        if not op.peer.connected:
            self._remove_if_unused(op.peer.agent, op.peer)

    def _remove_if_unused(self, key: str, peer: _Peer) -> None:
        if peer.num_in_flight:
            return
        del self._peers[key]
        for prepared in (peer.generations, peer.landing_side, *peer.pages.values()):
            prepared.release()
        self._agent.deregister_memory(peer.landing_registration)
        self._agent.remove_remote_agent(peer.agent)

    def _failure(self, op: int, error: Exception) -> Completion:
        return _failed(op, f"NIXL: {error}", lost=isinstance(error, self._lost))


def _make_agent(api: ModuleType, bindings: ModuleType, name: str, backend: str) -> Any:
    """NIXL's Python agent around a C++ agent whose progress thread sleeps: the Python one has no setting for it."""
    config = bindings.nixlAgentConfig()
    config.useProgThread = True
    config.pthrDelay = PROGRESS_TIMEOUT_US
    agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=[]))
    agent.agent = bindings.nixlAgent(name, config)
    agent.create_backend(backend)
    return agent


def _failed(op: int, message: str, lost: bool) -> Completion:
    return Completion(op, OpStatus.FAILED, peer_lost=lost, message=message)


def _memory(device: int) -> str:
    return "DRAM" if device < 0 else "VRAM"


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint64).ctypes.data)


def _indices(pages: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.asarray(pages, dtype=np.int32)
