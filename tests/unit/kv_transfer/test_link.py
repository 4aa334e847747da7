from kv_transfer.link import Link, LinkLimits
from kv_transfer.session import GenerationRead
from kv_transfer.transports.base import PageRead

LIMITS = LinkLimits(max_posted_bytes=250, floor_bytes_per_s=1000, stall_grace_s=0.5)


def read(op: int) -> PageRead:
    return PageRead(op, "p@1", (1,), (1,), 0, 1)


def loaded(num_reads: int) -> Link:
    link = Link(LIMITS)
    for op in range(1, num_reads + 1):
        link.push(read(op), 100)
    return link


def ops(posted: list[PageRead | GenerationRead]) -> list[int]:
    return [each.op for each in posted]


def test_posts_in_order_up_to_the_limit() -> None:
    link = loaded(5)
    assert ops(link.take()) == [1, 2]
    assert link.take() == []
    link.ended(2)
    assert ops(link.take()) == [3]


def test_one_read_larger_than_the_limit_still_goes() -> None:
    link = Link(LIMITS)
    link.push(read(1), 1000)
    link.push(read(2), 1000)
    assert ops(link.take()) == [1]
    link.ended(1)
    assert ops(link.take()) == [2]


def test_generations_go_first() -> None:
    link = loaded(4)
    link.take()
    link.push(GenerationRead(9, "p@1", (1,)), 8)
    assert ops(link.take()) == [9]


def test_withdraw_takes_back_what_was_not_posted() -> None:
    link = loaded(5)
    link.take()
    assert link.withdraw({1, 3, 5}) == [3, 5]
    link.ended(1)
    assert ops(link.take()) == [4]


def test_stalls_after_grace_and_floor_without_progress() -> None:
    link = loaded(2)
    link.watched(100)
    assert not link.stalled, "nothing is posted"
    link.take()
    link.watched(0.69)
    assert not link.stalled
    link.watched(0.02)
    assert link.stalled
    link.ended(1)
    link.watched(0.59)
    assert not link.stalled
    link.watched(0.02)
    assert link.stalled
    link.ended(2)
    assert not link.busy and not link.stalled


def test_the_clock_starts_anew_after_idling() -> None:
    link = loaded(1)
    link.take()
    link.ended(1)
    link.watched(1000)
    link.push(read(2), 100)
    link.take()
    link.watched(0.59)
    assert not link.stalled


def test_reads_of_an_earlier_link_are_nobodys_progress() -> None:
    link = loaded(1)
    link.take()
    link.watched(0.61)
    link.ended(77)
    assert link.busy and link.stalled
