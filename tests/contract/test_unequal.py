"""Workers whose pages have other sizes, or hold other heads, over every transport."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from engine.core.digest import extend_digest, page_digests, root_digest
from engine.core.types import KVLayout, WorkerInfo, token_buffer
from kv_transfer.api import FirstToken, JoinPeer, OfferTicket, OpenHandoff, PeerReady, Proven, TransferOutcome
from kv_transfer.host_pool import HostPool
from kv_transfer.layout import layout_hash
from kv_transfer.manager import TransferManager
from kv_transfer.reslice import Cut, Part, pieces
from kv_transfer.ticket import Ticket, seal_ticket
from kv_transfer.transports.base import OpStatus, PageRead, Transport, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.nixl import NixlTransport
from tests.contract.transport_rigs import KEY, NUM_PAGES, RIGS, TIMEOUT_S, Rig, info_of, page_bytes
from tests.fakes.kv_values import page_holds, write_tokens

BASE = KVLayout("model", num_layers=3, num_kv_heads=4, head_dim=4, page_size=8, dtype="float32")
PAIRS = {
    "larger pages there": (BASE, replace(BASE, page_size=32)),
    "smaller pages there": (BASE, replace(BASE, page_size=2)),
    "fewer heads there": (BASE, replace(BASE, tp_size=4)),
    "more heads there": (replace(BASE, tp_size=4), BASE),
    "more heads and larger pages there": (replace(BASE, tp_size=2), replace(BASE, page_size=16)),
    "fewer heads and smaller pages there": (replace(BASE, tp_size=2), replace(BASE, page_size=4, tp_size=4)),
}
"""(here, there)"""
ROOT = root_digest(b"", "model")
NUM_TOKENS = 64
TOKENS = range(1000, 1000 + NUM_TOKENS)


@pytest.fixture(params=sorted(RIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


class Shards:
    """All ranks of a source, each a worker of its own, and one rank of a reader."""

    def __init__(self, kind: str, mine: KVLayout, theirs: KVLayout) -> None:
        self.rig: Rig = RIGS[kind](mine, theirs)
        self.peers, self.made = [self.rig.peer], []
        pools = [self.rig.source_pool]
        for rank in range(1, theirs.tp_size):
            pool = HostPool(theirs, NUM_PAGES)
            transport = self.rig.make(peer_key(f"rank{rank}", 1), pool)
            self.rig.reader.connect(info_of(f"rank{rank}", 1, transport, theirs))
            self.peers.append(peer_key(f"rank{rank}", 1))
            self.made.append(transport)
            pools.append(pool)
        for rank, pool in enumerate(pools):
            write_tokens(pool, range(NUM_TOKENS // theirs.page_size), TOKENS, rank)

    def close(self) -> None:
        self.rig.close()
        for transport in self.made:
            transport.close()


@pytest.fixture(params=sorted(PAIRS))
def shards(kind: str, request: pytest.FixtureRequest) -> Iterator[Shards]:
    shards = Shards(kind, *PAIRS[request.param])
    yield shards
    shards.close()


def test_every_byte_of_every_shard_arrives_where_it_belongs(shards: Shards) -> None:
    rig, mine, theirs = shards.rig, shards.rig.reader_pool.layout, shards.rig.source_layout
    rank = mine.tp_size - 1
    larger = max(mine.page_size, theirs.page_size)
    src_pages, dst_pages = larger // theirs.page_size, larger // mine.page_size
    groups = range(NUM_TOKENS // larger)
    ops = 0
    for piece in pieces(mine, rank, theirs):
        src = [group * src_pages + piece.src_page for group in groups]
        dst = [group * dst_pages + piece.dst_page for group in groups]
        for layers in ((1, 3), (0, 1)):
            ops += 1
            rig.reader.read_pages(PageRead(ops, shards.peers[piece.src_rank], src, dst, *layers, piece.cut))
    ended = rig.wait(*range(1, ops + 1))
    assert {completion.status for completion in ended.values()} == {OpStatus.DONE}
    num_pages = NUM_TOKENS // mine.page_size
    assert sum(completion.num_bytes for completion in ended.values()) == num_pages * mine.page_bytes
    for page in range(num_pages):
        held = TOKENS[page * mine.page_size : (page + 1) * mine.page_size]
        assert page_holds(rig.reader_pool, page, held, rank), page
    assert page_bytes(rig.reader_pool, num_pages) == bytes(mine.page_bytes)


def test_a_part_of_a_page_touches_nothing_else_of_it(kind: str) -> None:
    rig = RIGS[kind](BASE, BASE)
    write_tokens(rig.source_pool, [5], TOKENS[:8])
    cut = Cut(Part(2, 3, 1, 2), Part(5, 3, 0, 2))
    rig.reader.read_pages(PageRead(1, rig.peer, (5,), (6,), 1, 2, cut))
    assert rig.wait(1)[1].num_bytes == 2 * 3 * 2 * 16
    arrived, sent = (
        rig.reader_pool.read(6, 1, 2).cast("B", (2, 8, 4, 16)).tolist(),
        rig.source_pool.read(5, 1, 2).cast("B", (2, 8, 4, 16)).tolist(),
    )
    for plane in range(2):
        for position in range(8):
            for head in range(4):
                moved = 5 <= position < 8 and head < 2
                right = sent[plane][position - 3][head + 1] if moved else [0] * 16
                assert arrived[plane][position][head] == right, (plane, position, head)
    assert not any(rig.reader_pool.read(6, 0, 1)) and not any(rig.reader_pool.read(6, 2, 3))
    rig.close()


def test_generations_of_a_peer_with_more_pages(kind: str) -> None:
    rig = RIGS[kind](BASE, replace(BASE, page_size=2))
    rig.source_pool.generations[NUM_PAGES - 1] = 9
    rig.reader.read_generations(1, rig.peer, (0, NUM_PAGES - 1))
    assert rig.wait(1)[1].generations == (1, 9)
    rig.close()


# ---------------------------------------------------------------- whole handoffs


HUB = LocalHub()
MAKE: dict[str, Callable[[HostPool, str], Transport]] = {
    "local": lambda pool, name: LocalTransport(HUB, name, pool),
    "grpc": lambda pool, name: GrpcTransport(pool, name, KEY),
    "nixl": NixlTransport,
}


class Managed:
    """A worker with its transfer thread."""

    def __init__(self, kind: str, id_: str, layout: KVLayout) -> None:
        self.id, self.pool, self.woken = id_, HostPool(layout, NUM_PAGES), threading.Event()
        transport = MAKE[kind](self.pool, peer_key(id_, 1))
        self.manager = TransferManager(self.pool, [transport], (id_, 1), KEY, notify=self.woken.set)

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(self.id, 1, (), "", "m", self.pool.layout, NUM_PAGES, 1024, self.manager.descriptors)

    def next(self) -> TransferOutcome:
        while True:
            self.woken.clear()
            outcomes = self.manager.outcomes()
            if outcomes:
                (outcome,) = outcomes
                return outcome
            assert self.woken.wait(TIMEOUT_S)


@pytest.mark.parametrize("kind", sorted(MAKE))
@pytest.mark.parametrize(("mine", "theirs"), [(16, 4), (4, 16)])
def test_a_handoff_between_other_page_sizes_is_proven(kind: str, mine: int, theirs: int) -> None:
    """13 tokens here already at 4 a page, or none at 16; the last page is partial on both sides."""
    p = Managed(kind, "p", replace(BASE, page_size=theirs))
    d = Managed(kind, "d", replace(BASE, page_size=mine))
    tokens = token_buffer(TOKENS[:61])
    src, dst = list(range(-(-61 // theirs))), tuple(range(20, 20 + -(-61 // mine)))
    num_local = 13 // mine
    write_tokens(p.pool, src, tokens)
    d.manager.submit(JoinPeer(p.info))
    assert isinstance(d.next(), PeerReady)
    digest = extend_digest(page_digests(ROOT, tokens, theirs)[-1], tokens[61 // theirs * theirs :])
    ticket = Ticket(
        id=1,
        worker_id="p",
        incarnation=1,
        layout_hash=layout_hash(p.pool.layout),
        token_begin=0,
        token_end=61,
        layer_begin=0,
        layer_end=BASE.num_layers,
        pages=tuple(src),
        generations=(0,) * len(src),
        digest=digest,
        expires_ms=60_000,
        first=FirstToken(1, None, 0),
    )
    d.manager.submit(OpenHandoff(1, tokens, ROOT, dst, num_local, time.monotonic() + TIMEOUT_S))
    d.manager.submit(OfferTicket(1, seal_ticket(ticket, KEY)))
    proven = d.next()
    assert isinstance(proven, Proven) and proven.local_pages == num_local, proven
    for index, page in enumerate(dst):
        held = tokens[index * mine : (index + 1) * mine] if index >= num_local else ()
        assert page_holds(d.pool, page, held), index
    d.manager.close()
    p.manager.close()
