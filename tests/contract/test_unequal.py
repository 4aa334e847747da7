"""Workers whose pages have other sizes, or whose ranks hold other heads, over every transport."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.core.digest import extend_digest, page_digests, root_digest
from engine.core.types import KVLayout, WorkerInfo, token_buffer
from kv_transfer.api import FirstToken, JoinPeer, OfferTicket, OpenHandoff, PeerReady, Proven, TransferOutcome
from kv_transfer.host_pool import HostPool
from kv_transfer.layout import layout_hash
from kv_transfer.manager import TransferManager
from kv_transfer.reslice import Cut, Part, routes
from kv_transfer.ticket import Ticket, seal_ticket
from kv_transfer.transports.base import OpStatus, PagePool, PageRead, Transport, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.nixl import NixlTransport
from tests.contract.transport_rigs import KEY, NUM_PAGES, RIGS, TIMEOUT_S
from tests.fakes.kv_values import page_holds, write_tokens

BASE = KVLayout("model", num_layers=3, num_kv_heads=4, head_dim=4, page_size=8, dtype="float32")


def tp(size: int, page_size: int = BASE.page_size) -> KVLayout:
    return replace(BASE, tp_size=size, page_size=page_size)


PAIRS = {
    "larger pages there": (BASE, tp(1, 32)),
    "smaller pages there": (BASE, tp(1, 2)),
    "one rank from two": (tp(1), tp(2)),
    "one rank from four": (tp(1), tp(4)),
    "two ranks from one": (tp(2), tp(1)),
    "two ranks from two": (tp(2), tp(2)),
    "two ranks from four": (tp(2), tp(4)),
    "four ranks from one": (tp(4), tp(1)),
    "four ranks from two": (tp(4), tp(2)),
    "four ranks from four": (tp(4), tp(4)),
    "two ranks from one with larger pages": (tp(2), tp(1, 16)),
    "two ranks from four with smaller pages": (tp(2), tp(4, 4)),
    "two ranks from two with larger pages": (tp(2), tp(2, 32)),
}
"""(here, there), whole workers."""
ROOT = root_digest(b"", "model")
NUM_TOKENS = 64
TOKENS = range(1000, 1000 + NUM_TOKENS)


@pytest.fixture(params=sorted(RIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_every_byte_of_every_rank_arrives_where_it_belongs(kind: str, pair: str) -> None:
    mine, theirs = PAIRS[pair]
    rig = RIGS[kind](mine, theirs)
    write_tokens(rig.source_pool, range(NUM_TOKENS // theirs.page_size), TOKENS)
    parts = routes(mine, theirs)
    part_size, larger = min(mine.page_size, theirs.page_size), max(mine.page_size, theirs.page_size)
    ops = 0
    for part, token in enumerate(range(0, larger, part_size)):
        src, dst = (
            [(group + token) // layout.page_size for group in range(0, NUM_TOKENS, larger)] for layout in (theirs, mine)
        )
        for route in parts[part]:
            for layers in ((1, 3), (0, 1)):
                ops += 1
                ranks = {"src_rank": route.src_rank, "dst_rank": route.dst_rank}
                rig.reader.read_pages(PageRead(ops, rig.peer, src, dst, *layers, route.cut, **ranks))
    ended = rig.wait(*range(1, ops + 1))
    assert {completion.status for completion in ended.values()} == {OpStatus.DONE}
    num_pages = NUM_TOKENS // mine.page_size
    assert sum(completion.num_bytes for completion in ended.values()) == num_pages * mine.page_bytes * mine.tp_size
    for page in range(num_pages):
        assert page_holds(rig.reader_pool, page, TOKENS[page * mine.page_size : (page + 1) * mine.page_size]), page
    assert page_holds(rig.reader_pool, num_pages, ())
    rig.close()


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
MAKE: dict[str, Callable[[PagePool, str], Transport]] = {
    "local": lambda pool, name: LocalTransport(HUB, name, pool),
    "grpc": lambda pool, name: GrpcTransport(pool, name, KEY),
    "nixl": NixlTransport,
}


class Managed:
    """A worker with its transfer thread."""

    def __init__(self, kind: str, id_: str, pool: PagePool) -> None:
        self.id, self.pool, self.woken = id_, pool, threading.Event()
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


HANDOFFS = {
    "smaller pages": (tp(1, 16), tp(1, 4)),
    "larger pages": (tp(1, 4), tp(1, 16)),
    "tp 1 to 2": (tp(2), tp(1)),
    "tp 1 to 4": (tp(4), tp(1)),
    "tp 2 to 1": (tp(1), tp(2)),
    "tp 2 to 2": (tp(2), tp(2)),
    "tp 2 to 4": (tp(4), tp(2)),
    "tp 4 to 1": (tp(1), tp(4)),
    "tp 4 to 2": (tp(2), tp(4)),
    "tp 2 to 4 and smaller pages": (tp(4, 16), tp(2, 4)),
}
"""(here, there)"""


@pytest.mark.parametrize("kind", sorted(MAKE))
@pytest.mark.parametrize("pair", sorted(HANDOFFS))
def test_a_handoff_between_unequal_workers_is_proven(kind: str, pair: str) -> None:
    """13 tokens are here already at 4 a page, 8 at 8, none at 16; the last page is partial on both sides."""
    here, there = (HostPool(layout, NUM_PAGES) for layout in HANDOFFS[pair])
    check_handoff(kind, here, there)


def check_handoff(kind: str, here: PagePool, there: PagePool) -> None:
    """All of the way from tokens in one pool to tokens in the other, over transports of that kind."""
    mine, theirs = here.layout.page_size, there.layout.page_size
    p, d = Managed(kind, "p", there), Managed(kind, "d", here)
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
