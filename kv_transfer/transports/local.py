"""Both pools in one process: plain copies. For colocated workers in tests, and as the speed to compare others with."""

import threading
from collections import deque
from collections.abc import Sequence

from engine.core.errors import TransferFailed
from engine.core.types import WorkerInfo
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead, descriptor_of, fetch, peer_key, store

POLL_BYTES = 32 << 20
"""Copied by one poll at most, so that no call blocks for the length of a transfer."""


class LocalHub:
    """The workers of this process. `lock` is held while bytes are copied: a pool that left is read no more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pools: dict[str, PagePool] = {}


class LocalTransport:
    """A worker's end of a LocalHub."""

    name = "local"

    def __init__(self, hub: LocalHub, peer: str, pool: PagePool) -> None:
        """`peer` is this worker's own peer_key."""
        self._hub, self._peer, self._pool = hub, peer, pool
        self._connected: set[str] = set()
        self._queue: deque[PageRead] = deque()
        self._copied = 0
        """Pages of the oldest queued read that were copied."""
        self._ended: list[Completion] = []
        with hub.lock:
            hub.pools[peer] = pool

    def descriptor(self) -> bytes:
        """Nothing: the hub knows everybody."""
        return b""

    def connect(self, info: WorkerInfo) -> None:
        """Raises TransferFailed if that worker is not in this process."""
        key = peer_key(info.id, info.incarnation)
        descriptor_of(info, self.name)
        if key not in self._hub.pools:
            raise TransferFailed(f"{key} is not in this process")
        self._connected.add(key)

    def disconnect(self, peer: str) -> None:
        """Reads of that peer which wait here end at the next poll."""
        self._connected.discard(peer)

    def read_pages(self, read: PageRead) -> None:
        """Queue one read; `poll` copies."""
        self._queue.append(read)

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Read them at once: every data read that has completed was copied before."""
        with self._hub.lock:
            pool = self._source(peer)
            if pool is None:
                self._ended.append(_lost(op))
                return
            generations = tuple(pool.generations[page] for page in pages)
        self._ended.append(Completion(op, OpStatus.DONE, 8 * len(generations), generations))

    def poll(self) -> list[Completion]:
        """Copy up to POLL_BYTES, then say what ended."""
        budget = POLL_BYTES
        while self._queue and budget > 0:
            budget -= self._copy(self._queue[0], budget)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Leave the hub; reads that wait never end."""
        with self._hub.lock:
            self._hub.pools.pop(self._peer, None)
        self._queue.clear()

    def _source(self, peer: str) -> PagePool | None:
        return self._hub.pools.get(peer) if peer in self._connected else None

    def _copy(self, read: PageRead, budget: int) -> int:
        """Copy pages of the oldest read until it ends or the budget does; bytes copied."""
        part_bytes = read.num_bytes(self._pool.layout) // len(read.src)
        count = min(len(read.src) - self._copied, max(1, budget // part_bytes))
        with self._hub.lock:
            source = self._source(read.peer)
            if source is None:
                self._end(_lost(read.op))
                return 0
            for i in range(self._copied, self._copied + count):
                store(self._pool, i, read, fetch(source, i, read))
        self._copied += count
        if self._copied == len(read.src):
            self._end(Completion(read.op, OpStatus.DONE, len(read.src) * part_bytes))
        return count * part_bytes

    def _end(self, completion: Completion) -> None:
        self._queue.popleft()
        self._copied = 0
        self._ended.append(completion)


def _lost(op: int) -> Completion:
    return Completion(op, OpStatus.FAILED, peer_lost=True, message="the worker left this process")
