"""The thread and its transports, between two workers of this process."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from engine.core.errors import IllegalEvent, InvalidRequest, TransferFailed
from engine.core.types import WorkerInfo
from kv_transfer.api import (
    Broken,
    CancelHandoff,
    DropPeer,
    JoinPeer,
    PeerReady,
    PeerRefused,
    Proven,
    Settled,
    TransferOutcome,
)
from kv_transfer.host_pool import HostPool
from kv_transfer.manager import TransferManager
from kv_transfer.transports.base import PagePool, Transport, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.nixl import NixlTransport
from tests.fakes.handoffs import KEY, LAYOUT, Worker, digests, fill, holds, offer, open_handoff, prompt

TIMEOUT_S = 20.0
TOKENS = prompt(70)
NUM_PAGES = 18


class Managed:
    """A worker with a real manager."""

    def __init__(self, id_: str, transports: Callable[[PagePool, str], list[Transport]], incarnation: int = 1) -> None:
        self.id, self.incarnation = id_, incarnation
        self.pool = HostPool(LAYOUT, 64)
        self.woken = threading.Event()
        made = transports(self.pool, peer_key(id_, incarnation))
        self.manager = TransferManager(self.pool, made, (id_, incarnation), KEY, notify=self.woken.set)
        self.seen: list[TransferOutcome] = []

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(self.id, self.incarnation, (), "", "m", LAYOUT, 64, 100, self.manager.descriptors)

    def wait(self, *kinds: type) -> TransferOutcome:
        """The next outcome of one of these kinds; waits to be woken, as an engine loop does."""
        while True:
            self.woken.clear()
            self.seen += self.manager.outcomes()
            for index, outcome in enumerate(self.seen):
                if isinstance(outcome, kinds):
                    return self.seen.pop(index)
            assert self.woken.wait(TIMEOUT_S), f"no {kinds} after {TIMEOUT_S} s; there is {self.seen}"

    # ticket() of the fake worker needs what it reads
    layout = LAYOUT
    ticket = Worker.ticket


def local(hub: LocalHub) -> Callable[[PagePool, str], list[Transport]]:
    return lambda pool, name: [LocalTransport(hub, name, pool)]


def over_grpc(pool: PagePool, name: str) -> list[Transport]:
    return [GrpcTransport(pool, name, KEY)]


def over_nixl(pool: PagePool, name: str) -> list[Transport]:
    return [NixlTransport(pool, name)]


@pytest.fixture(params=["local", "grpc", "nixl"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Managed, Managed]]:
    make = {"local": local(LocalHub()), "grpc": over_grpc, "nixl": over_nixl}[request.param]
    p, d = Managed("p", make), Managed("d", make)
    for page, digest in enumerate(digests(TOKENS)):
        p.pool.generations[page] = 7
        fill(p.pool, page, digest)
    yield p, d
    p.manager.close()
    d.manager.close()


def test_join_pull_prove(pair: tuple[Managed, Managed]) -> None:
    p, d = pair
    d.manager.submit(JoinPeer(p.info))
    ready = d.wait(PeerReady, PeerRefused)
    assert isinstance(ready, PeerReady) and ready.bytes_per_s > 0, ready
    pages = tuple(range(20, 20 + NUM_PAGES))
    d.manager.submit(open_handoff(1, TOKENS, pages))
    d.manager.submit(offer(p.ticket(1, TOKENS, list(range(NUM_PAGES)), 0, 32)))
    d.manager.submit(offer(p.ticket(1, TOKENS, list(range(NUM_PAGES)), 32)))
    proven = d.wait(Proven, Broken)
    assert isinstance(proven, Proven) and proven.pulled_pages == NUM_PAGES, proven
    assert all(holds(d.pool, page, digest) for page, digest in zip(pages, digests(TOKENS), strict=True))


def test_reuse_is_noticed(pair: tuple[Managed, Managed]) -> None:
    p, d = pair
    d.manager.submit(JoinPeer(p.info))
    d.wait(PeerReady)
    ticket = p.ticket(1, TOKENS, list(range(NUM_PAGES)))
    p.pool.generations[3] += 1
    d.manager.submit(open_handoff(1, TOKENS, tuple(range(NUM_PAGES))))
    d.manager.submit(offer(ticket))
    broken = d.wait(Proven, Broken)
    assert isinstance(broken, Broken) and broken.cause == "generation"
    assert d.wait(Settled) == Settled(1)


def test_cancel_and_drop(pair: tuple[Managed, Managed]) -> None:
    p, d = pair
    d.manager.submit(JoinPeer(p.info))
    d.wait(PeerReady)
    d.manager.submit(open_handoff(1, TOKENS, tuple(range(NUM_PAGES))))
    d.manager.submit(CancelHandoff(1))
    assert d.wait(Settled) == Settled(1)
    d.manager.submit(open_handoff(2, TOKENS, tuple(range(NUM_PAGES))))
    d.manager.submit(offer(p.ticket(2, TOKENS, list(range(NUM_PAGES)), 0, 32)))
    d.manager.submit(DropPeer("p", 1))
    assert d.wait(Settled) == Settled(2)
    d.manager.submit(JoinPeer(p.info))
    assert isinstance(d.wait(PeerReady), PeerReady)


def test_descriptors_of_another_worker_or_key_are_refused(pair: tuple[Managed, Managed]) -> None:
    p, d = pair
    d.manager.submit(JoinPeer(replace(p.info, id="somebody")))
    refused = d.wait(PeerRefused)
    assert isinstance(refused, PeerRefused) and refused.permanent and "does not open" in refused.message


def test_a_pair_falls_back_to_grpc_and_says_why() -> None:
    hub = LocalHub()
    both = lambda pool, name: [LocalTransport(hub, name, pool), GrpcTransport(pool, name, KEY)]  # noqa: E731
    p, d = Managed("p", both), Managed("d", both)
    hub.pools[peer_key("p", 1)] = HostPool(LAYOUT, 64)  # the wrong memory: the golden page will not be there
    d.manager.submit(JoinPeer(p.info))
    ready = d.wait(PeerReady, PeerRefused)
    assert isinstance(ready, PeerReady) and ready.transport == "grpc"
    assert ready.message == "local: the golden page arrived with other bytes"
    p.manager.close()
    d.manager.close()


def test_a_dead_thread_is_an_error_not_a_silence(pair: tuple[Managed, Managed]) -> None:
    _, d = pair
    d.manager.submit(open_handoff(1, TOKENS, tuple(range(NUM_PAGES))))
    hook, threading.excepthook = threading.excepthook, lambda args: seen.append(args.exc_type)
    seen: list[type[BaseException]] = []
    d.manager.submit(open_handoff(1, TOKENS, tuple(range(NUM_PAGES))))
    assert d.woken.wait(TIMEOUT_S)
    d.manager._thread.join(TIMEOUT_S)
    threading.excepthook = hook
    assert seen == [IllegalEvent]
    with pytest.raises(TransferFailed, match="thread is gone"):
        d.manager.outcomes()


def test_close_twice_and_a_short_key() -> None:
    d = Managed("d", local(LocalHub()))
    d.manager.close()
    d.manager.close()
    with pytest.raises(InvalidRequest, match="cluster key"):
        TransferManager(d.pool, [LocalTransport(LocalHub(), "x@1", d.pool)], ("x", 1), b"short")
