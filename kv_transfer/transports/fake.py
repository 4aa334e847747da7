"""A network that exists in virtual time only, for tests and for the chaos campaign. Pure.

Bytes are copied from pool to pool at the moment they land, part by part, so everything that goes wrong on a real
network goes wrong here by itself: a source page that is reused before its copy lands arrives with the new bytes, and
reads that were posted before a disconnect land after it (like NIXL's, they cannot be taken back).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from engine.core.errors import TransferFailed
from engine.core.types import WorkerInfo
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead, descriptor_of, fetch, peer_key, store

DelayOf = Callable[[str, str, int], float]
"""(reader, source, number of pages) -> seconds until a read has landed; infinite: never, unless the source dies."""
MAX_PARTS = 16
"""A read lands in so many equal parts at most: what is torn is torn at one of these points."""


@dataclass(slots=True)
class _Op:
    """One posted read. `landed` counts parts; a read of generations has one."""

    op: int
    reader: "FakeTransport"
    source: str
    read: PageRead | None
    pages: Sequence[int]
    num_parts: int = 1
    landed: int = 0
    fails_s: float = float("inf")
    """When the reader learns that the source died."""
    failing: bool = False
    """Its reader was told that it fails; its bytes land all the same, and only then it ends."""
    ended: bool = False


class FakeNetwork:
    """Who is attached, what is in flight, and the clock. Delays, and with them the order, come from `delay_of`."""

    def __init__(
        self,
        delay_of: DelayOf = lambda reader, source, num_pages: 0.001,
        detect_s: float = 0.05,
        cancels: bool = False,
    ) -> None:
        """`detect_s`: how long after a worker died its readers learn of it. `cancels`: what is in flight when a reader
        disconnects ends at once and lands nowhere, as over gRPC; else it lands all the same, as over NIXL.
        """
        self.now = 0.0
        self._cancels = cancels
        self._delay_of = delay_of
        self._detect_s = detect_s
        self._attached: dict[str, FakeTransport] = {}
        self._stopped: dict[str, list[_Op]] = {}
        """By stopped worker: what would have landed from it."""
        self._due: list[tuple[float, int, _Op]] = []
        self._in_flight: list[_Op] = []
        self._order = count()

    def advance(self, now: float) -> None:
        """Let everything land that is due by `now`, in order of time."""
        while self._due and self._due[0][0] <= now:
            due_s, _, op = heappop(self._due)
            self.now = max(self.now, due_s)
            self._land(op)
        self.now = max(self.now, now)

    @property
    def next_s(self) -> float:
        """When the next thing lands; infinite when nothing will."""
        return self._due[0][0] if self._due else float("inf")

    def kill(self, name: str) -> None:
        """That worker's process is gone: nothing more lands from it or at it; its readers learn of it later."""
        self._attached.pop(name, None)
        self._stopped.pop(name, None)
        self._in_flight = [op for op in self._in_flight if op.reader.peer != name]
        for op in self._in_flight:
            if op.source == name:
                self._fail_later(op)

    def stop(self, name: str) -> None:
        """That worker hangs (SIGSTOP): what would land from it waits."""
        self._stopped.setdefault(name, [])

    def resume(self, name: str) -> None:
        """That worker goes on (SIGCONT): what waited lands now."""
        for op in self._stopped.pop(name, []):
            self._schedule(op, 0.0)

    def fail_reads(self, name: str) -> None:
        """What is in flight from that worker fails, says the network; its bytes land all the same."""
        for op in self._in_flight:
            if op.source == name and not op.failing:
                op.failing = True
                op.reader.report(Completion(op.op, OpStatus.FAILING, message="the link broke"))

    # ------------------------------------------------------------ for FakeTransport

    def attach(self, name: str, transport: "FakeTransport") -> None:
        """A worker is there."""
        self._attached[name] = transport

    def is_up(self, name: str) -> bool:
        """That worker runs or hangs, but was not killed."""
        return name in self._attached

    def post(self, op: _Op) -> None:
        """Put a read on its way; one of a dead worker fails after the time that it takes to notice."""
        self._in_flight.append(op)
        if not self.is_up(op.source):
            self._fail_later(op)
            return
        delay_s = self._delay_of(op.reader.peer, op.source, len(op.pages))
        if delay_s == float("inf"):
            return
        op.num_parts = min(len(op.pages), MAX_PARTS) if op.read is not None else 1
        for part in range(op.num_parts):
            self._schedule(op, delay_s * (part + 1) / op.num_parts)

    def disconnect(self, reader: "FakeTransport", source: str) -> None:
        """That reader wants nothing more from there."""
        if self._cancels:
            for op in [op for op in self._in_flight if op.reader is reader and op.source == source]:
                self._end(op, Completion(op.op, OpStatus.FAILED, peer_lost=True, message="disconnected"))

    # ------------------------------------------------------------ inside

    def _schedule(self, op: _Op, delay_s: float) -> None:
        heappush(self._due, (self.now + delay_s, next(self._order), op))

    def _fail_later(self, op: _Op) -> None:
        op.fails_s = self.now + self._detect_s
        self._schedule(op, self._detect_s)

    def _land(self, op: _Op) -> None:
        source = self._attached.get(op.source)
        if op.ended or not self.is_up(op.reader.peer):
            return
        if source is None:
            if self.now >= op.fails_s:
                self._end(op, Completion(op.op, OpStatus.FAILED, peer_lost=True, message="the worker died"))
        elif op.source in self._stopped:
            self._stopped[op.source].append(op)
        elif op.read is None:
            generations = tuple(source.pool.generations[page] for page in op.pages)
            self._end(op, Completion(op.op, OpStatus.DONE, 8 * len(generations), generations))
        else:
            self._land_part(op, op.read, source.pool)

    def _land_part(self, op: _Op, read: PageRead, source: PagePool) -> None:
        num_pages = len(read.src)
        begin, op.landed = op.landed * num_pages // op.num_parts, op.landed + 1
        for index in range(begin, op.landed * num_pages // op.num_parts):
            store(op.reader.pool, index, read, fetch(source, index, read))
        if op.landed == op.num_parts:
            self._end(op, Completion(op.op, OpStatus.DONE, read.num_bytes(op.reader.pool.layout)))

    def _end(self, op: _Op, completion: Completion) -> None:
        if op.failing:
            completion = Completion(op.op, OpStatus.FAILED, message="the link broke")
        op.ended = True
        self._in_flight.remove(op)
        op.reader.report(completion)


class FakeTransport:
    """A worker's end of a FakeNetwork."""

    name = "fake"

    def __init__(
        self, network: FakeNetwork, peer: str, pool: PagePool, wake: Callable[[], None] = lambda: None
    ) -> None:
        """`peer` is this worker's own peer_key; `wake` hears that there is something to poll."""
        self.peer, self.pool = peer, pool
        self._ended: list[Completion] = []
        self._wake = wake
        self._network = network
        self._connected: set[str] = set()
        network.attach(peer, self)

    def descriptor(self) -> bytes:
        """Nothing: the network knows everybody."""
        return b""

    def connect(self, info: WorkerInfo) -> None:
        """Raises TransferFailed if that worker is not there."""
        key = peer_key(info.id, info.incarnation)
        descriptor_of(info, self.name)
        if not self._network.is_up(key):
            raise TransferFailed(f"{key} is not on the network")
        self._connected.add(key)

    def disconnect(self, peer: str) -> None:
        """What is in flight still lands, unless the network says otherwise."""
        self._connected.discard(peer)
        self._network.disconnect(self, peer)

    def read_pages(self, read: PageRead) -> None:
        """Post one read."""
        self._post(_Op(read.op, self, read.peer, read, read.src))

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of generations."""
        self._post(_Op(op, self, peer, None, pages))

    def poll(self) -> list[Completion]:
        """What ended up to the network's time."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Leave the network like a process that ended."""
        self._network.kill(self.peer)

    def _post(self, op: _Op) -> None:
        if op.source in self._connected:
            self._network.post(op)
        else:
            self.report(Completion(op.op, OpStatus.FAILED, peer_lost=True, message="not connected"))

    def report(self, completion: Completion) -> None:
        """For the network: an operation ended, or fails."""
        self._ended.append(completion)
        self._wake()
