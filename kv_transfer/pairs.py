"""The peers of one worker: proves each pair, watches it, and posts reads to it. No clock of its own, no thread."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from engine.core.errors import Incompatible, TransferFailed
from engine.core.protocol import check_protocol
from engine.core.types import KVLayout, WorkerInfo
from kv_transfer.api import PeerReady, PeerRefused
from kv_transfer.layout import check_layouts
from kv_transfer.link import Read
from kv_transfer.peer import Peer, PeerConfig, PeerState
from kv_transfer.proof import Prover
from kv_transfer.session import GenerationRead, Source
from kv_transfer.transports.base import (
    Completion,
    PagePool,
    Transport,
    peer_key,
)

MAX_WATCH_S = 0.1
"""What one tick counts at most in judging others. Ticks come every 10 ms; when they come much later, this worker stood
still, and so did what receives its bytes. A worker that merely starves, and wakes a few times a second, must still
notice a peer that is hung within two seconds."""


POOL_PARTS = 8
"""Reads that are posted to one peer fill one of so many parts of the pool at most: no more can hang with it."""


def read_bytes(read: Read, layout: KVLayout) -> int:
    """Bytes that a read moves."""
    if isinstance(read, GenerationRead):
        return 8 * len(read.pages)
    return read.num_bytes(layout)


def _part_of(pool: PagePool) -> int:
    return pool.num_pages * pool.layout.page_bytes * pool.layout.tp_size // POOL_PARTS


class Pairs:
    """Every joined peer, by peer_key. What changed is in `events` until taken."""

    def __init__(
        self, pool: PagePool, transports: Sequence[Transport], config: PeerConfig, ops: Iterator[int], name: str
    ) -> None:
        """`transports` in order of preference; `name` is this worker's own peer_key, `ops` numbers the reads."""
        self.events: list[PeerReady | PeerRefused] = []
        self._unposted: list[int] = []
        """Reads that waited for a peer which is lost: nothing was or will be posted for them. Their sessions break by
        the event, and withdraw them."""
        self._pool = pool
        self._transports = {transport.name: transport for transport in transports}
        self._config = replace(config, max_posted_bytes=min(config.max_posted_bytes, _part_of(pool)))
        self._peers: dict[str, Peer] = {}
        self._ticked_s = 0.0
        self._prover = Prover(pool, config, ops, name)

    # ------------------------------------------------------------ who is there

    def join(self, info: WorkerInfo, now: float) -> None:
        """Begin the proof of a pair; PeerReady or PeerRefused follows. A suspect peer is tried again at once."""
        key = peer_key(info.id, info.incarnation)
        known = self._peers.get(key)
        if known is not None:
            if known.state is PeerState.SUSPECT:
                known.retry()
                self._step(known, now)
            return
        try:
            check_protocol(info.protocol, f"worker {info.id}")
            check_layouts(self._pool.layout, info.layout)
            shared = self._shared_transports(info)
        except Incompatible as error:
            self.events.append(PeerRefused(info.id, info.incarnation, error.message, permanent=True))
            return
        self._peers[key] = Peer(info, shared, self._config)
        self._step(self._peers[key], now)

    def drop(self, key: str, reason: str) -> None:
        """Forget that incarnation."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._unposted += peer.link.drain()
            self._prover.forget(peer)
            self._transports[peer.transport].disconnect(key)
            self.events.append(PeerRefused(peer.info.id, peer.info.incarnation, reason, permanent=True))

    def source(self, key: str) -> Source | None:
        """The peer as sessions see it; None unless it is proven."""
        peer = self._peers.get(key)
        if peer is None or peer.state is not PeerState.READY:
            return None
        return Source(key, peer.info.layout, peer.info.num_pages, peer.link.limits.max_read_bytes)

    def is_new(self, key: str) -> bool:
        """True while the first proof of that pair is under way: worth to wait for."""
        peer = self._peers.get(key)
        return peer is not None and not peer.judged

    @property
    def reading(self) -> bool:
        """A proof's read is in flight."""
        return self._prover.reading

    @property
    def waiting(self) -> bool:
        """Some peer needs `tick` from time to time."""
        return any(peer.state is not PeerState.READY or peer.link.busy for peer in self._peers.values())

    # ------------------------------------------------------------ reads

    def push(self, read: Read, now: float) -> bool:
        """Queue a read to a proven peer and post what may go; False if the peer is gone."""
        peer = self._peers.get(read.peer)
        if peer is None or peer.state is not PeerState.READY:
            return False
        peer.link.push(read, read_bytes(read, self._pool.layout))
        self._post(peer, now)
        return True

    def withdraw(self, key: str, ops: Collection[int]) -> list[int]:
        """Those of `ops` that were not posted yet and now never will be."""
        peer = self._peers.get(key)
        withdrawn = [op for op in self._unposted if op in ops]
        self._unposted = [op for op in self._unposted if op not in ops]
        return withdrawn + (peer.link.withdraw(ops) if peer is not None else [])

    def ended(self, completion: Completion, key: str, now: float) -> None:
        """A read of a session ended."""
        peer = self._peers.get(key)
        if peer is None:
            return
        peer.link.ended(completion.op)
        if completion.peer_lost and peer.state is PeerState.READY:
            self._fault(peer, completion.message or "the connection was lost", now)
        else:
            self._post(peer, now)

    def proof_ended(self, completion: Completion, now: float) -> bool:
        """If `completion` is that of a proof's read: judge it, and return True."""
        if not self._prover.owns(completion.op):
            return False
        step = self._prover.ended(completion, now)
        if step is None:
            return True
        step.peer.link.ended(completion.op)
        if step.wrong is not None:
            self._fault(step.peer, step.wrong, now)
        elif step.bytes_per_s is not None:
            self.events.append(step.peer.timed(step.bytes_per_s))
        else:
            if step.passed:
                step.peer.step_ok()
            self._step(step.peer, now)
        return True

    def tick(self, now: float) -> None:
        """Find hung peers; try suspect ones again."""
        watched_s, self._ticked_s = min(now - self._ticked_s, MAX_WATCH_S), now
        for peer in list(self._peers.values()):
            peer.link.watched(watched_s)
            if peer.state is PeerState.SUSPECT:
                if now >= peer.retry_s:
                    peer.retry()
                    self._step(peer, now)
            elif peer.link.stalled:
                self._fault(peer, "hung: too few bytes arrived for too long", now)

    # ------------------------------------------------------------ the proof

    def _shared_transports(self, info: WorkerInfo) -> list[str]:
        theirs = [name for name, _ in info.transports]
        shared = [name for name in self._transports if name in theirs]
        if not shared:
            raise Incompatible(f"no common transport: {', '.join(self._transports)} here, {', '.join(theirs)} there")
        return shared

    def _post(self, peer: Peer, now: float) -> None:
        if not any(other.link.busy for other in self._peers.values()):
            self._ticked_s = now  # nobody ticked while nothing was posted: that was no watching
        transport = self._transports[peer.transport]
        for read in peer.link.take():
            if isinstance(read, GenerationRead):
                transport.read_generations(read.op, read.peer, read.pages)
            else:
                transport.read_pages(read)

    def _fault(self, peer: Peer, reason: str, now: float) -> None:
        self._unposted += peer.link.drain()
        self._transports[peer.transport].disconnect(peer.key)
        refused = peer.fault(reason, now)
        if refused is None:
            self._step(peer, now)
        else:
            self.events.append(refused)

    def _step(self, peer: Peer, now: float) -> None:
        """Do what the peer's state asks for."""
        if peer.state is PeerState.CONNECTING:
            try:
                self._transports[peer.transport].connect(peer.info)
            except (Incompatible, TransferFailed) as error:
                self._fault(peer, error.message, now)
                return
            peer.step_ok()
            self._prover.begin(peer)
        read = self._prover.next_read(peer, now)
        if read is None:
            self._fault(peer, "every scratch page still has a read of an earlier proof in flight", now)
            return
        peer.link.push(read, read_bytes(read, self._pool.layout))
        self._post(peer, now)
