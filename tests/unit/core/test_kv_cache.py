from array import array

import pytest

from engine.core.errors import IllegalEvent
from engine.core.kv_cache import KVCache, PageNeed
from engine.core.lease import Lease, LeaseState
from tests.fakes.core import make_request

WAITER = make_request(2, [1])


def open_lease(
    kv: KVCache, id: int, tokens: list[int], *, remote: bool = False, headroom: int = 0
) -> "Lease | tuple[object, bytes] | None":
    size = kv.page_size
    state = LeaseState.RESERVED if remote else LeaseState.PROVEN
    max_match = len(tokens) if remote else len(tokens) - 1
    need = PageNeed(-(-len(tokens) // size), max_match, headroom, state)
    return kv.open(make_request(id, tokens), array("i", tokens), need)


def leased(opened: object) -> Lease:
    assert isinstance(opened, Lease)
    return opened


def test_published_pages_are_found_by_the_next_request() -> None:
    kv = KVCache(2, 8)
    first = leased(open_lease(kv, 1, [1, 2, 3, 4, 5]))
    kv.publish(first, array("i", [1, 2, 3, 4, 5]), 4)
    second = leased(open_lease(kv, 2, [1, 2, 3, 4, 9]))
    assert second.pages[:2] == first.pages[:2] and second.num_valid == 4
    assert second.pages[2] != first.pages[2]
    kv.check_integrity()


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    """Its logits are needed, so its page must be the request's own."""
    kv = KVCache(2, 8)
    tokens = [1, 2, 3, 4]
    first = leased(open_lease(kv, 1, tokens))
    kv.publish(first, array("i", tokens), 4)
    assert leased(open_lease(kv, 2, tokens)).num_valid == 2


def test_a_handoff_takes_every_page_that_is_here() -> None:
    kv = KVCache(2, 8)
    tokens = [1, 2, 3, 4]
    first = leased(open_lease(kv, 1, tokens))
    kv.publish(first, array("i", tokens), 4)
    assert leased(open_lease(kv, 2, tokens, remote=True)).num_valid == 4


def test_one_computes_and_the_other_waits_for_its_next_page() -> None:
    kv = KVCache(2, 8)
    tokens = [1, 2, 3, 4, 5]
    first = leased(open_lease(kv, 1, tokens))
    frontier = open_lease(kv, 2, tokens)
    assert isinstance(frontier, tuple) and kv.is_awaited(frontier, WAITER, LeaseState.PROVEN)
    kv.publish(first, array("i", tokens), 2)
    assert not kv.is_awaited(frontier, WAITER, LeaseState.PROVEN)
    frontier = open_lease(kv, 2, tokens)
    assert isinstance(frontier, tuple), "now it waits for the second page"
    kv.publish(first, array("i", tokens), 4)
    assert leased(open_lease(kv, 2, tokens)).num_valid == 4


def test_nobody_waits_for_a_page_that_differs_or_that_will_not_be_full() -> None:
    kv = KVCache(2, 16)
    open_lease(kv, 1, [1, 2, 3, 4, 5])
    assert isinstance(open_lease(kv, 2, [1, 9, 3, 4, 5]), Lease)
    open_lease(kv, 3, [7])
    assert isinstance(open_lease(kv, 4, [7, 8, 9]), Lease)


def test_nobody_waits_for_the_dead() -> None:
    kv = KVCache(2, 8)
    first = leased(open_lease(kv, 1, [1, 2, 3]))
    frontier = open_lease(kv, 2, [1, 2, 3])
    assert isinstance(frontier, tuple)
    kv.retire(first, step_in_flight=True)
    assert not kv.is_awaited(frontier, WAITER, LeaseState.PROVEN)
    assert isinstance(open_lease(kv, 2, [1, 2, 3]), Lease)


def test_a_handoff_waits_for_a_handoff_but_a_computation_does_not() -> None:
    kv = KVCache(2, 16)
    first = leased(open_lease(kv, 1, [1, 2, 3], remote=True))
    first.fill()
    assert isinstance(open_lease(kv, 2, [1, 2, 3], remote=True), tuple)
    assert isinstance(open_lease(kv, 3, [1, 2, 3]), Lease)


def test_nobody_waits_for_the_less_urgent() -> None:
    kv = KVCache(2, 16)
    tokens, need = array("i", [1, 2, 3]), PageNeed(2, max_match=2)
    assert isinstance(kv.open(make_request(1, tokens, priority=1), tokens, need), Lease)
    assert isinstance(kv.open(make_request(2, tokens, priority=1), tokens, need), tuple)
    assert isinstance(kv.open(make_request(3, tokens, priority=0), tokens, need), Lease)


def test_pages_computed_twice_stay_with_who_computed_them_until_the_end() -> None:
    kv = KVCache(2, 8)
    tokens = array("i", [1, 2, 3])
    need = PageNeed(2, max_match=0)
    first, second = (
        leased(kv.open(make_request(1, tokens), tokens, need)),
        leased(kv.open(make_request(2, tokens), tokens, need)),
    )
    kv.publish(first, tokens, 2)
    kv.publish(second, tokens, 2)
    assert second.duplicates == second.pages[:1] and second.pages[0] != first.pages[0]
    kv.check_integrity()
    kv.retire(second)
    kv.retire(first)
    assert kv.pages_by_state() == {
        "free": 7,
        "cached": 1,
        "shared": 0,
        "leased": 0,
        "reserved": 0,
        "filling": 0,
        "quarantined": 0,
    }


def test_out_of_pages_takes_nothing_and_headroom_stays_available() -> None:
    kv = KVCache(1, 4)
    assert open_lease(kv, 1, [1, 2, 3, 4, 5]) is None
    assert open_lease(kv, 1, [1, 2, 3], headroom=2) is None
    assert kv.num_available == 4
    lease = leased(open_lease(kv, 1, [1, 2, 3], headroom=1))
    assert kv.extend(lease, 2) is None and len(lease.pages) == 3
    assert kv.extend(lease, 1) == lease.pages[3:]


def test_what_matches_is_not_evicted_to_make_room_for_the_rest() -> None:
    kv = KVCache(1, 4)
    first = leased(open_lease(kv, 1, [1, 2, 3, 4]))
    kv.publish(first, array("i", [1, 2, 3, 4]), 4)
    kv.retire(first)
    second = leased(open_lease(kv, 2, [1, 2, 3, 9]))
    assert second.num_valid == 3 and len(set(second.pages)) == 4
    kv.check_integrity()


@pytest.mark.parametrize("step_in_flight", [False, True])
def test_pages_come_back_when_nothing_can_write_to_them(step_in_flight: bool) -> None:
    kv = KVCache(1, 4)
    lease = leased(open_lease(kv, 1, [1, 2]))
    assert kv.retire(lease, step_in_flight=step_in_flight) is not step_in_flight
    if step_in_flight:
        assert kv.pages_by_state()["quarantined"] == 2 and kv.num_available == 2
        assert kv.settle(lease)
    assert kv.num_available == 4


def test_a_quarantine_outlives_all_but_its_last_transfer() -> None:
    kv = KVCache(1, 4)
    lease = leased(open_lease(kv, 1, [1, 2], remote=True))
    lease.fill()
    lease.fill()
    assert not kv.retire(lease)
    assert not kv.settle(lease)
    assert kv.num_available == 2
    assert kv.settle(lease)
    assert kv.num_available == 4


def test_what_a_transfer_can_no_longer_write_leaves_the_quarantine() -> None:
    kv = KVCache(1, 8)
    known = leased(open_lease(kv, 1, [1, 2]))
    kv.publish(known, array("i", [1, 2]), 2)
    lease = leased(open_lease(kv, 2, [1, 2, 3, 4, 5], remote=True))
    lease.fill()
    with pytest.raises(IllegalEvent):
        kv.narrow(lease, ())
    kv.retire(lease)
    kv.narrow(lease, {lease.pages[3]})
    kv.check_integrity()
    assert kv.pages_by_state() | {"quarantined": 1, "free": 5, "shared": 2} == kv.pages_by_state()
    kv.narrow(lease, ())
    kv.check_integrity()
    assert kv.num_available == 6
    assert kv.settle(lease)
    kv.retire(known)
    kv.check_integrity()
    assert kv.num_available == 8


def test_a_quarantine_for_two_reasons_is_not_narrowed_by_one() -> None:
    kv = KVCache(1, 4)
    lease = leased(open_lease(kv, 1, [1, 2], remote=True))
    lease.fill()
    kv.retire(lease, step_in_flight=True)
    with pytest.raises(IllegalEvent):
        kv.narrow(lease, ())
    assert kv.num_available == 2


def test_states_of_pages_follow_their_lease() -> None:
    kv = KVCache(1, 6)
    lease = leased(open_lease(kv, 1, [1, 2, 3], remote=True))
    assert kv.pages_by_state()["reserved"] == 3
    lease.fill()
    assert kv.pages_by_state()["filling"] == 3
    kv.publish(lease, array("i", [1, 2, 3]), 1)
    states = kv.pages_by_state()
    assert (states["filling"], states["shared"], states["free"]) == (2, 1, 3)
