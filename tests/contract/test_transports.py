"""What every transport must do, whatever carries the bytes."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.core.errors import Incompatible
from kv_transfer.transports.base import OpStatus, PageRead
from tests.contract.transport_rigs import LAYOUT, NUM_PAGES, RIGS, Rig, info_of, page_bytes, stamp

ALL_LAYERS = (0, LAYOUT.num_layers)
EMPTY = bytes(LAYOUT.page_bytes)


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = RIGS[request.param]()
    yield rig
    rig.close()


def test_pull_brings_exactly_the_pages_that_were_asked_for(rig: Rig) -> None:
    rig.reader.read_pages(PageRead(1, rig.peer, (3, 4, 5, 60), (10, 11, 2, 40), *ALL_LAYERS))
    done = rig.wait(1)[1]
    assert (done.status, done.num_bytes) == (OpStatus.DONE, 4 * LAYOUT.page_bytes)
    arrived = {10: 3, 11: 4, 2: 5, 40: 60}
    for page in range(NUM_PAGES):
        expected = page_bytes(rig.source_pool, arrived[page]) if page in arrived else EMPTY
        assert page_bytes(rig.reader_pool, page) == expected, page


def test_partial_pull_touches_only_its_layers(rig: Rig) -> None:
    rig.reader.read_pages(PageRead(1, rig.peer, (7,), (7,), 1, 3))
    done = rig.wait(1)[1]
    layer = LAYOUT.page_bytes // LAYOUT.num_layers
    arrived, sent = page_bytes(rig.reader_pool, 7), page_bytes(rig.source_pool, 7)
    assert done.num_bytes == 2 * layer
    assert arrived == bytes(layer) + sent[layer : 3 * layer] + bytes(layer)


def test_layer_groups_in_any_order_make_whole_pages(rig: Rig) -> None:
    for op, layers in enumerate([(2, 4), (0, 1), (1, 2)], start=1):
        rig.reader.read_pages(PageRead(op, rig.peer, (9, 8), (8, 9), *layers))
    rig.wait(1, 2, 3)
    assert page_bytes(rig.reader_pool, 8) == page_bytes(rig.source_pool, 9)
    assert page_bytes(rig.reader_pool, 9) == page_bytes(rig.source_pool, 8)


def test_golden_and_scratch_pages_can_be_read_and_written(rig: Rig) -> None:
    golden, scratch = NUM_PAGES, NUM_PAGES + 1
    stamp(rig.source_pool, golden, 77)
    rig.source_pool.generations[golden] = 2**64 - 1
    rig.reader.read_pages(PageRead(1, rig.peer, (golden,) * 3, (scratch,) * 3, *ALL_LAYERS))
    rig.wait(1)
    rig.reader.read_generations(2, rig.peer, (golden,))
    assert page_bytes(rig.reader_pool, scratch) == page_bytes(rig.source_pool, golden)
    assert rig.wait(2)[2].generations == (2**64 - 1,)


def test_generations_read_after_the_data_tell_of_reuse(rig: Rig) -> None:
    rig.reader.read_pages(PageRead(1, rig.peer, (1, 2, 3), (1, 2, 3), *ALL_LAYERS))
    rig.wait(1)
    rig.source_pool.generations[2] += 1
    stamp(rig.source_pool, 2, 99)
    rig.reader.read_generations(2, rig.peer, (3, 1, 2))
    assert rig.wait(2)[2].generations == (1, 1, 2)


def test_many_reads_at_once_each_end_once_with_the_right_bytes(rig: Rig) -> None:
    order = random.Random(5)
    for op in range(1, 201):
        page = op % NUM_PAGES
        begin = order.randrange(LAYOUT.num_layers)
        end = order.randrange(begin, LAYOUT.num_layers) + 1
        rig.reader.read_pages(PageRead(op, rig.peer, (page,), (page,), begin, end))
    for op in range(201, 201 + NUM_PAGES):
        rig.reader.read_pages(PageRead(op, rig.peer, (op - 201,), (op - 201,), *ALL_LAYERS))
    for op in range(301, 331):
        rig.reader.read_generations(op, rig.peer, range(NUM_PAGES))
    ended = rig.wait(*range(1, 201), *range(201, 201 + NUM_PAGES), *range(301, 331))
    assert {completion.status for completion in ended.values()} == {OpStatus.DONE}
    assert all(ended[op].generations == (1,) * NUM_PAGES for op in range(301, 331))
    for page in range(NUM_PAGES):
        assert page_bytes(rig.reader_pool, page) == page_bytes(rig.source_pool, page)


def test_both_ways_at_once(rig: Rig) -> None:
    rig.source.connect(info_of("reader", 1, rig.reader))
    for page in range(8):
        stamp(rig.reader_pool, page, 5)
    rig.reader.read_pages(PageRead(1, rig.peer, range(8, 16), range(8, 16), *ALL_LAYERS))
    rig.source.read_pages(PageRead(1, "reader@0000000000000001", range(8), range(8), *ALL_LAYERS))
    assert rig.wait(1)[1].status is OpStatus.DONE
    assert rig.wait(1, transport=rig.source)[1].status is OpStatus.DONE
    for page in range(16):
        assert page_bytes(rig.source_pool, page) == page_bytes(rig.reader_pool, page)


def test_a_lost_peer_ends_every_read_and_soon_says_so(rig: Rig) -> None:
    """The first reads may still find the memory in place, with the right bytes; the loss shows within moments."""
    rig.source.close()
    for op in range(1, 1000, 2):
        rig.reader.read_pages(PageRead(op, rig.peer, (1,), (1,), *ALL_LAYERS))
        rig.reader.read_generations(op + 1, rig.peer, (1,))
        ended = rig.wait(op, op + 1)
        if all(completion.status is OpStatus.FAILED for completion in ended.values()):
            break
        if ended[op].status is OpStatus.DONE:
            assert page_bytes(rig.reader_pool, 1) == page_bytes(rig.source_pool, 1)
    assert [ended[n].peer_lost for n in (op, op + 1)] == [True, True]


def test_reads_in_flight_end_once_after_a_disconnect_and_then_touch_nothing(rig: Rig) -> None:
    ops = range(1, 41)
    for op in ops:
        rig.reader.read_pages(PageRead(op, rig.peer, range(32), range(32), *ALL_LAYERS))
    rig.reader.disconnect(rig.peer)
    rig.wait(*ops)
    for page in range(32):
        stamp(rig.reader_pool, page, 200)
    before = [page_bytes(rig.reader_pool, page) for page in range(32)]
    for page in range(32):
        stamp(rig.source_pool, page, 201)
    for _ in range(50):
        rig.idle()
        assert rig.reader.poll() == []
    assert [page_bytes(rig.reader_pool, page) for page in range(32)] == before


def test_a_peer_can_be_connected_again_after_a_disconnect(rig: Rig) -> None:
    rig.reader.disconnect(rig.peer)
    rig.reader.read_pages(PageRead(1, rig.peer, (1,), (1,), *ALL_LAYERS))
    assert rig.wait(1)[1].status is OpStatus.FAILED
    rig.reader.connect(rig.info)
    rig.reader.read_pages(PageRead(2, rig.peer, (1,), (1,), *ALL_LAYERS))
    assert rig.wait(2)[2].status is OpStatus.DONE
    assert page_bytes(rig.reader_pool, 1) == page_bytes(rig.source_pool, 1)


def test_a_restarted_worker_is_another_peer(rig: Rig) -> None:
    old = rig.peer
    rig.source.close()
    rig.start_source(incarnation=2)
    rig.reader.connect(rig.info)
    rig.reader.read_pages(PageRead(1, rig.peer, (6,), (6,), *ALL_LAYERS))
    rig.reader.read_pages(PageRead(2, old, (6,), (7,), *ALL_LAYERS))
    rig.reader.read_generations(3, rig.peer, (6,))
    ended = rig.wait(1, 2, 3)
    assert (ended[1].status, ended[3].generations) == (OpStatus.DONE, (2,))
    assert (ended[2].status, ended[2].peer_lost) == (OpStatus.FAILED, True)
    assert page_bytes(rig.reader_pool, 6) == page_bytes(rig.source_pool, 6)
    assert page_bytes(rig.reader_pool, 7) == EMPTY


def test_a_read_of_a_peer_that_was_never_connected_fails(rig: Rig) -> None:
    rig.reader.read_pages(PageRead(1, "stranger@0000000000000001", (1,), (1,), *ALL_LAYERS))
    rig.reader.read_generations(2, "stranger@0000000000000001", (1,))
    assert {completion.status for completion in rig.wait(1, 2).values()} == {OpStatus.FAILED}
    assert page_bytes(rig.reader_pool, 1) == EMPTY


def test_connecting_needs_the_peers_descriptor(rig: Rig) -> None:
    with pytest.raises(Incompatible, match="does not speak"):
        rig.reader.connect(replace(rig.info, incarnation=9, transports=(("pigeon", b""),)))


def test_after_close_no_memory_is_touched(rig: Rig) -> None:
    for op in range(1, 41):
        rig.reader.read_pages(PageRead(op, rig.peer, range(32), range(32), *ALL_LAYERS))
    rig.reader.close()
    for page in range(NUM_PAGES):
        stamp(rig.reader_pool, page, 200)
    before = [page_bytes(rig.reader_pool, page) for page in range(NUM_PAGES)]
    for _ in range(50):
        rig.idle()
    assert [page_bytes(rig.reader_pool, page) for page in range(NUM_PAGES)] == before
