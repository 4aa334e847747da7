"""The reads by which a pair proves itself, and what they must bring. No clock of its own, no thread."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.core.types import KVLayout
from kv_transfer.link import Read
from kv_transfer.peer import Peer, PeerConfig, PeerState, golden_bytes
from kv_transfer.reslice import Route, gather, num_runs, routes
from kv_transfer.session import GenerationRead
from kv_transfer.transports.base import NUM_SPARE_PAGES, Completion, OpStatus, PagePool, PageRead

MAX_TIMED_PAGES = 64
MAX_TIMED_RUNS = 16384
"""Between unequal ranks a page has many short runs, which some transports take one by one: 9 us each over NIXL."""
NUM_TIMED = 3
"""The best of them counts: the others may have met somebody else's work."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one read of a proof showed. Neither wrong nor measured: go on."""

    peer: Peer
    wrong: str | None = None
    passed: bool = False
    bytes_per_s: float | None = None
    """The proof is complete."""


@dataclass(frozen=True, slots=True)
class _Posted:
    peer: Peer
    scratch: int | None
    posted_s: float
    route: Route | None


class Prover:
    """Owns this worker's golden page, which others read, and the scratch pages, which proofs are read into.

    A scratch page is used again only when its read has ended, so a hung peer may keep one for ever; there are several.
    """

    def __init__(self, pool: PagePool, config: PeerConfig, ops: Iterator[int], name: str) -> None:
        """Write the golden page. `name` is this worker's own peer_key, `ops` numbers the reads."""
        self._pool, self._config, self._ops = pool, config, ops
        self._posted: dict[int, _Posted] = {}
        self._rates: dict[str, list[float]] = {}
        self._unproven: dict[str, list[Route]] = {}
        """By peer: the ways on which its golden page has yet to come."""
        golden = pool.num_pages
        self._scratch = list(range(golden + 1, golden + NUM_SPARE_PAGES))
        for rank in range(pool.layout.tp_size):
            pool.write(golden, 0, pool.layout.num_layers, golden_bytes(name, pool.layout.page_bytes, rank), rank)
        pool.generations[golden] = int(name.rpartition("@")[2], 16)

    @property
    def reading(self) -> bool:
        """A read is in flight."""
        return bool(self._posted)

    def begin(self, peer: Peer) -> None:
        """The peer is connected: its proof starts afresh."""
        self._rates.pop(peer.key, None)
        self._unproven[peer.key] = list(_golden_routes(self._pool.layout, peer.info.layout))

    def next_read(self, peer: Peer, now: float) -> Read | None:
        """The read that the peer's state asks for, to be posted at once; None if no scratch page is free."""
        golden, layout = peer.info.num_pages, self._pool.layout
        op = next(self._ops)
        if peer.state is PeerState.GENERATION:
            self._posted[op] = _Posted(peer, None, now, None)
            peer.proof_op = op
            return GenerationRead(op, peer.key, (golden,))
        if not self._scratch:
            return None
        scratch = self._scratch.pop()
        if peer.state is PeerState.TIMING:
            route = _golden_routes(layout, peer.info.layout)[0]
            count = self._timed_pages(peer, route)
        else:
            route, count = self._unproven[peer.key][0], 1
            self._pool.write(scratch, 0, layout.num_layers, bytes(layout.page_bytes), route.dst_rank)
        self._posted[op] = _Posted(peer, scratch, now, route)
        peer.proof_op = op
        return PageRead(
            op,
            peer.key,
            (golden,) * count,
            (scratch,) * count,
            0,
            layout.num_layers,
            cut=route.cut,
            src_rank=route.src_rank,
            dst_rank=route.dst_rank,
        )

    def owns(self, op: int) -> bool:
        """True if that read is one of a proof."""
        return op in self._posted

    def ended(self, completion: Completion, now: float) -> Step | None:
        """Judge what a read brought; None if its proof was given up before."""
        posted = self._posted[completion.op]
        if completion.status is not OpStatus.FAILING:
            del self._posted[completion.op]
            if posted.scratch is not None:
                self._scratch.append(posted.scratch)
        peer = posted.peer
        if peer.proof_op != completion.op:
            return None
        if completion.status is not OpStatus.DONE:
            return Step(peer, wrong=completion.message or "the read failed")
        if peer.state is PeerState.TIMING:
            return self._timed(peer, completion.num_bytes, now - posted.posted_s)
        wrong = self._wrong(posted, completion)
        if wrong is not None:
            return Step(peer, wrong)
        if posted.route is not None:
            self._unproven[peer.key].remove(posted.route)
        return Step(peer, passed=posted.route is None or not self._unproven[peer.key])

    def forget(self, peer: Peer) -> None:
        """That peer is gone; its reads may still end."""
        self._rates.pop(peer.key, None)
        self._unproven.pop(peer.key, None)
        peer.proof_op = None

    def _wrong(self, posted: _Posted, completion: Completion) -> str | None:
        layout, peer, route = self._pool.layout, posted.peer, posted.route
        if posted.scratch is None or route is None:
            if completion.generations != (peer.info.incarnation,):
                return f"the golden page's generation is {completion.generations}, not the worker's incarnation"
            return None
        arrived = self._pool.read(posted.scratch, 0, layout.num_layers, route.dst_rank)
        right = memoryview(golden_bytes(peer.key, peer.info.layout.page_bytes, route.src_rank))
        if route.cut is not None:
            arrived = memoryview(gather(arrived, layout, route.cut.dst, layout.num_layers))
            right = memoryview(gather(right, peer.info.layout, route.cut.src, layout.num_layers))
        if arrived == right:
            return None
        ranks = f" (from rank {route.src_rank} to rank {route.dst_rank})" if layout.tp_size > 1 else ""
        return f"the golden page arrived with other bytes{ranks}"

    def _timed_pages(self, peer: Peer, route: Route) -> int:
        layout = self._pool.layout
        count = min(MAX_TIMED_PAGES, max(1, self._config.timed_bytes // layout.page_bytes))
        if route.cut is None:
            return count
        return min(count, max(1, MAX_TIMED_RUNS // num_runs(route.cut, layout, peer.info.layout)))

    def _timed(self, peer: Peer, num_bytes: int, seconds: float) -> Step:
        floor = self._config.join_floor_bytes_per_s
        rates = self._rates.setdefault(peer.key, [])
        rates.append(num_bytes / max(seconds, 1e-9))
        if len(rates) < NUM_TIMED:
            return Step(peer)
        best = max(self._rates.pop(peer.key))
        if num_bytes / best > self._config.join_grace_s + num_bytes / floor:
            return Step(peer, wrong=f"{best / 1e6:.1f} MB/s is under the floor of {floor / 1e6:.1f} MB/s")
        return Step(peer, bytes_per_s=best)


def _golden_routes(mine: KVLayout, theirs: KVLayout) -> tuple[Route, ...]:
    """What of golden pages fits a scratch page: between other page sizes the last part, whose end is that of both."""
    return routes(mine, theirs)[-1]
