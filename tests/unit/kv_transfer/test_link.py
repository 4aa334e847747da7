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
    assert ops(link.take(0)) == [1, 2]
    assert link.take(0) == []
    link.ended(2, 0)
    assert ops(link.take(0)) == [3]


def test_one_read_larger_than_the_limit_still_goes() -> None:
    link = Link(LIMITS)
    link.push(read(1), 1000)
    link.push(read(2), 1000)
    assert ops(link.take(0)) == [1]
    link.ended(1, 0)
    assert ops(link.take(0)) == [2]


def test_generations_go_first() -> None:
    link = loaded(4)
    link.take(0)
    link.push(GenerationRead(9, "p@1", (1,)), 8)
    assert ops(link.take(0)) == [9]


def test_withdraw_takes_back_what_was_not_posted() -> None:
    link = loaded(5)
    link.take(0)
    assert link.withdraw({1, 3, 5}) == [3, 5]
    link.ended(1, 0)
    assert ops(link.take(0)) == [4]


def test_stalls_after_grace_and_floor_without_progress() -> None:
    link = loaded(2)
    assert link.stalls_s == float("inf")
    link.take(now=10)
    assert link.stalls_s == 10 + 0.5 + 0.2
    link.ended(1, now=10.6)
    assert link.stalls_s == 10.6 + 0.5 + 0.1
    link.ended(2, now=10.7)
    assert not link.busy and link.stalls_s == float("inf")


def test_the_clock_starts_anew_after_idling() -> None:
    link = loaded(1)
    link.take(0)
    link.ended(1, 0)
    link.push(read(2), 100)
    link.take(now=1000)
    assert link.stalls_s == 1000 + 0.5 + 0.1


def test_reads_of_an_earlier_link_are_nobodys_progress() -> None:
    link = loaded(1)
    link.take(now=1)
    link.ended(77, now=9)
    assert link.busy and link.stalls_s == 1 + 0.5 + 0.1


def test_a_worker_that_stood_still_blames_nobody() -> None:
    link = loaded(1)
    link.take(now=1)
    link.excuse(5, now=7)
    assert link.stalls_s == 6 + 0.5 + 0.1
    link.excuse(100, now=7)
    assert link.stalls_s == 7 + 0.5 + 0.1, "never later than from now on"
