"""What only NIXL has: agents that are destroyed, and memory that must outlive them."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.core.errors import Incompatible
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.base import Completion, OpStatus, PageRead, peer_key
from kv_transfer.transports.nixl import NixlTransport
from tests.contract.transport_rigs import LAYOUT, NUM_PAGES, TIMEOUT_S, Rig, info_of, nixl_rig, page_bytes, stamp

OTHER = peer_key("other", 1)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = nixl_rig()
    yield rig
    rig.close()


@pytest.fixture
def other(rig: Rig) -> Iterator[HostPool]:
    """A second source, that the reader is connected with."""
    pool = HostPool(LAYOUT, NUM_PAGES)
    for page in range(NUM_PAGES):
        stamp(pool, page, 9)
    transport = NixlTransport(pool, OTHER)
    rig.reader.connect(info_of("other", 1, transport))
    yield pool
    transport.close()


def fail_one(rig: Rig) -> list[Completion]:
    """Lose the source; everything that was said of the first read that was posted and failed."""
    rig.source.close()
    give_up_s = time.monotonic() + TIMEOUT_S
    op = 1000
    while True:
        op += 1
        rig.reader.read_pages(PageRead(op, rig.peer, (1,), (1,), 0, 4))
        said: list[Completion] = []
        while not said or said[-1].status is OpStatus.FAILING:
            said += rig.reader.poll()
            assert time.monotonic() < give_up_s
            rig.idle()
        if said[-1].status is OpStatus.FAILED:
            return said


def test_a_read_that_ended_in_error_is_over_only_when_its_agent_is_gone(rig: Rig) -> None:
    assert isinstance(rig.reader, NixlTransport)
    before = rig.reader._reader
    said = fail_one(rig)
    assert [completion.status for completion in said] == [OpStatus.FAILING, OpStatus.FAILED]
    assert all(completion.peer_lost for completion in said)
    assert before is not None and before._agent is None, "destroyed"
    assert rig.reader._reader is not before


def test_other_peers_are_read_on_with_a_new_agent(rig: Rig, other: HostPool) -> None:
    fail_one(rig)
    rig.reader.read_pages(PageRead(1, OTHER, (5,), (6,), 0, 4))
    rig.reader.read_generations(2, OTHER, (5,))
    ended = rig.wait(1, 2)
    assert {completion.status for completion in ended.values()} == {OpStatus.DONE}
    assert page_bytes(rig.reader_pool, 6) == page_bytes(other, 5)


def test_reads_of_others_that_were_posted_with_the_tainted_agent_still_end_well(rig: Rig, other: HostPool) -> None:
    rig.source.close()
    pages = range(NUM_PAGES)
    for op in range(1, 200, 2):
        rig.reader.read_pages(PageRead(op, rig.peer, (1,), (1,), 0, 4))
        rig.reader.read_pages(PageRead(op + 1, OTHER, pages, pages, 0, 4))
        ended = rig.wait(op, op + 1)
        assert ended[op + 1].status is OpStatus.DONE
        if ended[op].status is OpStatus.FAILED:
            break
    assert ended[op].status is OpStatus.FAILED
    assert [page_bytes(rig.reader_pool, page) for page in pages] == [page_bytes(other, page) for page in pages]


def test_a_descriptor_that_is_cut_off_or_of_another_size_is_refused(rig: Rig) -> None:
    source = rig.source.descriptor()
    cases = (
        (source[:20], "cut off"),
        (source[:33], "cut off"),
        (bytes(8) + source[8:], "bytes"),
        (source[:20] + b"\2" + source[21:], "1 ranks; it has 2"),
    )
    for damaged, words in cases:
        info = replace(info_of("source", 2, rig.source), transports=(("nixl", damaged),))
        with pytest.raises(Incompatible, match=words):
            rig.reader.connect(info)


def test_a_descriptor_of_another_incarnation_is_refused(rig: Rig) -> None:
    with pytest.raises(Incompatible, match="belongs to"):
        rig.reader.connect(info_of("source", 2, rig.source))
