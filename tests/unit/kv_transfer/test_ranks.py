"""Handoffs between workers of several ranks in virtual time: one proof, one ticket, one generation for all of them."""

from dataclasses import replace

import pytest

from engine.core.types import KVLayout
from kv_transfer.api import Broken, Cause, Held, JoinPeer, PeerReady, PeerRefused, Proven, Settled
from kv_transfer.pairs import POOL_PARTS
from kv_transfer.peer import PeerConfig, golden_bytes
from kv_transfer.reslice import Route, num_runs, routes
from kv_transfer.transports.fake import FakeNetwork
from tests.fakes.handoffs import LAYOUT, Worker, offer, open_handoff, prompt
from tests.fakes.kv_values import page_holds, write_tokens

TWO = replace(LAYOUT, num_kv_heads=4, tp_size=2)
SRC, DST = [3, 4, 9, 1, 2], (10, 11, 12, 13, 14)
TOKENS = prompt(18)


def tp(size: int) -> KVLayout:
    return replace(TWO, tp_size=size)


class World:
    """A prefill worker p with a computed prompt, and a decode worker d, of so many ranks each."""

    def __init__(self, theirs: KVLayout, mine: KVLayout, config: PeerConfig | None = None, pages: int = 32) -> None:
        self.delay_s = 0.004
        self.network = FakeNetwork(lambda reader, source, num_pages: self.delay_s)
        self.p = Worker(self.network, "p", layout=theirs, num_pages=pages)
        self.d = Worker(self.network, "d", layout=mine, num_pages=pages, config=config)
        write_tokens(self.p.pool, SRC, TOKENS)

    def join(self) -> PeerReady | PeerRefused:
        self.d.core.handle(JoinPeer(self.p.info), 0.0)
        self.d.run(0.2)
        (outcome,) = self.d.outcomes
        self.d.outcomes.clear()
        assert isinstance(outcome, PeerReady | PeerRefused)
        return outcome

    def hand_over(self) -> None:
        self.d.core.handle(open_handoff(1, TOKENS, DST), self.network.now)
        self.d.core.handle(offer(self.p.ticket(1, TOKENS, SRC)), self.network.now)

    def run(self, seconds: float) -> None:
        self.d.run(self.network.now + seconds)


def test_equal_workers_read_rank_from_rank_whole_pages() -> None:
    assert routes(tp(4), tp(4)) == (tuple(Route(rank, rank, None) for rank in range(4)),)


@pytest.mark.parametrize(
    ("mine", "theirs", "pairs"),
    [
        (1, 2, [(0, 0), (1, 0)]),
        (2, 1, [(0, 0), (0, 1)]),
        (4, 2, [(0, 0), (0, 1), (1, 2), (1, 3)]),
        (2, 4, [(0, 0), (1, 0), (2, 1), (3, 1)]),
    ],
)
def test_unequal_workers_read_from_the_ranks_that_hold_their_heads(
    mine: int, theirs: int, pairs: list[tuple[int, int]]
) -> None:
    (part,) = routes(tp(mine), tp(theirs))
    assert [(route.src_rank, route.dst_rank) for route in part] == pairs
    assert all(route.cut for route in part)
    cut = part[0].cut
    assert cut is not None and num_runs(cut, tp(mine), tp(theirs)) == TWO.num_layers * 2 * TWO.page_size


@pytest.mark.parametrize(("mine", "theirs"), [(1, 1), (2, 2), (4, 4), (1, 4), (4, 1), (2, 4)])
def test_one_ticket_brings_the_heads_of_all_ranks(mine: int, theirs: int) -> None:
    world = World(tp(theirs), tp(mine))
    assert isinstance(world.join(), PeerReady)
    world.hand_over()
    world.run(0.2)
    (proven,) = world.d.outcomes
    assert isinstance(proven, Proven) and proven.pulled_pages == len(DST)
    size = TWO.page_size
    for index, page in enumerate(DST):
        assert page_holds(world.d.pool, page, TOKENS[index * size : (index + 1) * size])


def test_a_page_reused_while_the_last_rank_is_read_proves_nothing() -> None:
    world = World(tp(2), tp(2))
    world.join()
    world.hand_over()
    world.p.pool.generations[SRC[2]] += 1
    write_tokens(world.p.pool, [SRC[2]], prompt(4))
    world.run(0.2)
    broken, settled = world.d.outcomes
    assert isinstance(broken, Broken) and broken.cause is Cause.GENERATION and settled == Settled(1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_golden_page_of_any_rank_that_is_wrong_is_refused_in_words(rank: int) -> None:
    world = World(tp(2), tp(2))
    golden = world.p.pool.num_pages
    world.p.pool.write(golden, 0, 1, bytes(TWO.page_bytes // TWO.num_layers), rank)
    refused = world.join()
    assert isinstance(refused, PeerRefused)
    assert f"other bytes (from rank {rank} to rank {rank})" in refused.message


def test_ranks_in_another_order_are_noticed() -> None:
    world = World(tp(2), tp(2))
    golden, layers = world.p.pool.num_pages, (0, TWO.num_layers)
    first, second = (bytes(world.p.pool.read(golden, *layers, rank)) for rank in range(2))
    assert (first, second) == tuple(golden_bytes(world.p.key, TWO.page_bytes, rank) for rank in range(2))
    world.p.pool.write(golden, *layers, second, 0)
    world.p.pool.write(golden, *layers, first, 1)
    assert isinstance(world.join(), PeerRefused)


def test_a_pair_that_was_lost_proves_every_rank_again() -> None:
    world = World(tp(2), tp(2))
    world.join()
    world.network.kill(world.p.key)
    world.hand_over()
    world.run(0.2)
    assert any(isinstance(outcome, PeerRefused) for outcome in world.d.outcomes)
    world.d.outcomes.clear()
    world.network.attach(world.p.key, world.p.transport)
    world.p.pool.write(world.p.pool.num_pages, 0, 1, bytes(TWO.page_bytes // TWO.num_layers), 1)
    world.run(2.0)
    assert world.d.outcomes and all(isinstance(outcome, PeerRefused) for outcome in world.d.outcomes)


def test_a_page_is_held_until_the_reads_of_all_its_ranks_have_ended() -> None:
    world = World(tp(2), tp(2), PeerConfig(posted_s=0, min_posted_bytes=1 << 20), pages=64)
    world.join()
    world.hand_over()
    world.network.fail_reads(world.p.key)
    world.run(0.001)
    broken, *rest = world.d.outcomes
    assert isinstance(broken, Broken) and not any(isinstance(outcome, Settled) for outcome in rest)
    world.run(0.2)
    assert world.d.outcomes[-1] == Settled(1)
    held = [outcome.pages for outcome in world.d.outcomes if isinstance(outcome, Held)]
    assert all(pages <= set(DST) for pages in held)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_hung_peer_holds_an_eighth_of_the_pages_however_many_ranks(size: int) -> None:
    num_pages, count = 64, 24
    world = World(tp(size), tp(size), PeerConfig(min_posted_bytes=1), num_pages)
    tokens, pages = prompt(count * TWO.page_size), list(range(count))
    write_tokens(world.p.pool, pages, tokens)
    world.join()
    world.delay_s = float("inf")
    world.d.core.handle(open_handoff(1, tokens, tuple(range(30, 30 + count))), world.network.now)
    world.d.core.handle(offer(world.p.ticket(1, tokens, pages)), world.network.now)
    world.run(3.0)
    held = [outcome.pages for outcome in world.d.outcomes if isinstance(outcome, Held)]
    assert held and 0 < len(held[-1]) <= num_pages // POOL_PARTS + 1
