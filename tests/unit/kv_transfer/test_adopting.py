"""Whole handoffs in virtual time: right tokens, one end for each request, every page back."""

import pytest

from engine.core.errors import IllegalEvent
from engine.core.messages import (
    Adopt,
    Adopted,
    Cancel,
    DeliverTicket,
    Finished,
    Generate,
    HandoffFailed,
    PeerJoined,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, Request
from kv_transfer.adopting import MAX_EARLY_REQUESTS, LegEvent, LegState
from kv_transfer.adopting import Leg as DecodeLeg
from tests.fakes.virtual_worker import PAGE_SIZE, VirtualPair, make_request, right_tokens


def hand_over(pair: VirtualPair, request: Request) -> None:
    """What a router does when nothing goes wrong."""
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    passed = 0
    for _ in range(200):
        pair.run(0.001)
        passed = pair.pass_tickets(request.id, passed)
        if pair.adopted(request.id):
            break
    pair.prefill.inbox.append(Release(request.id))
    pair.run(0.2)


def tokens_of(pair: VirtualPair, id: int) -> list[int]:
    """As a router puts them together: the first from prefill, the rest from decode."""
    return pair.prefill.said.tokens.get(id, []) + pair.decode.said.tokens.get(id, [])


def assert_all_back(pair: VirtualPair) -> None:
    pair.run(0.5)
    assert pair.prefill.num_held_pages == 0
    assert pair.decode.num_held_pages == 0


@pytest.mark.parametrize("num_tokens", [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE, 23, 40])
def test_handed_over_tokens_are_right(num_tokens: int) -> None:
    pair = VirtualPair()
    request = make_request(1, range(num_tokens), max_tokens=12)
    hand_over(pair, request)
    assert tokens_of(pair, 1) == right_tokens(request)
    assert len(pair.prefill.said.tokens[1]) == 1
    (adopted,) = pair.decode.said.of(Adopted)
    assert (adopted.pulled_pages, adopted.local_pages) == (-(-num_tokens // PAGE_SIZE), 0)
    assert pair.decode.said.ends(1) == [Finished(1, FinishReason.LENGTH)]
    assert_all_back(pair)


def test_only_missing_pages_are_pulled() -> None:
    pair = VirtualPair()
    hand_over(pair, make_request(1, range(18), max_tokens=3))
    again = make_request(2, [*range(16), 90, 91, 92], max_tokens=5)
    hand_over(pair, again)
    assert tokens_of(pair, 2) == right_tokens(again)
    (adopted,) = pair.decode.said.of(Adopted, 2)
    assert (adopted.pulled_pages, adopted.local_pages) == (1, 4)
    assert pair.prefill.said.of(Started, 2)[0].cached_tokens == 16
    assert_all_back(pair)


def test_tickets_before_the_adopt_are_kept() -> None:
    pair = VirtualPair()
    request = make_request(1, range(30), max_tokens=4)
    pair.prefill.inbox.append(Prefill(request))
    pair.run(0.05)
    assert pair.pass_tickets(1) > 1
    pair.run(0.01)
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.1)
    assert tokens_of(pair, 1) == right_tokens(request)


def test_early_tickets_are_bounded() -> None:
    pair = VirtualPair()
    role = pair.decode.role
    for id in range(2 * MAX_EARLY_REQUESTS):
        role.on_command(DeliverTicket(id, b"x"), 0.0)
    assert len(role._adopting._early) == MAX_EARLY_REQUESTS
    role.on_command(Cancel(2 * MAX_EARLY_REQUESTS - 1), 0.0)
    assert len(role._adopting._early) == MAX_EARLY_REQUESTS - 1


def test_pages_move_while_prefill_still_computes() -> None:
    pair = VirtualPair()
    request = make_request(1, range(80), max_tokens=2)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    passed = 0
    while not pair.prefill.said.tokens.get(1):
        pair.run(0.001)
        passed = pair.pass_tickets(1, passed)
    landed = pair.decode.pool.read(pair.decode.core._states[1].lease.pages[0], 0, 1)  # type: ignore[union-attr]
    assert passed > 3
    assert any(landed)
    pair.run(0.1)
    pair.pass_tickets(1, passed)
    pair.run(0.1)
    assert tokens_of(pair, 1) == right_tokens(request)


def test_generate_on_either_worker() -> None:
    pair = VirtualPair()
    request = make_request(1, range(13), max_tokens=9)
    pair.decode.inbox.append(Generate(request))
    pair.prefill.inbox.append(Generate(request))
    pair.run(0.1)
    assert pair.decode.said.tokens[1] == pair.prefill.said.tokens[1] == right_tokens(request)
    assert pair.decode.said.of(Started, 1) and pair.decode.said.ends(1) == [Finished(1, FinishReason.LENGTH)]
    assert_all_back(pair)


def test_a_ticket_of_another_prompt_is_refused() -> None:
    pair = VirtualPair()
    pair.prefill.inbox.append(Prefill(make_request(1, range(20), max_tokens=4)))
    pair.decode.inbox.append(Adopt(make_request(1, [*range(19), 77], max_tokens=4)))
    pair.run(0.05)
    pair.pass_tickets(1)
    pair.run(0.05)
    (failed,) = pair.decode.said.ends(1)
    assert isinstance(failed, HandoffFailed)
    assert "digest" in failed.message and not failed.peer_lost
    pair.prefill.inbox.append(Cancel(1))
    assert_all_back(pair)


def test_a_forged_ticket_is_refused() -> None:
    pair = VirtualPair()
    pair.decode.inbox += [Adopt(make_request(1, range(8), max_tokens=4)), DeliverTicket(1, b"BT" + bytes(200))]
    pair.run(0.05)
    (failed,) = pair.decode.said.ends(1)
    assert isinstance(failed, HandoffFailed) and "HMAC" in failed.message
    assert_all_back(pair)


def test_a_dead_peer_fails_the_handoff_once_and_quarantine_ends() -> None:
    pair = VirtualPair(delay_s=0.02)
    request = make_request(1, range(20), max_tokens=4)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.02)
    pair.pass_tickets(1)
    pair.run(0.005)
    assert pair.decode.core.pages_by_state()["filling"] > 0
    pair.network.kill("p@0000000000000001")
    pair.run(0.2)
    (failed,) = pair.decode.said.ends(1)
    assert isinstance(failed, HandoffFailed) and failed.peer_lost
    assert not pair.decode.said.of(PeerStatus)[-1].ready
    assert pair.decode.num_held_pages == 0


def test_cancel_while_filling_quarantines_until_the_last_byte_landed() -> None:
    pair = VirtualPair(delay_s=0.05)
    request = make_request(1, range(20), max_tokens=4)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.02)
    pair.pass_tickets(1)
    pair.run(0.005)
    pair.decode.inbox.append(Cancel(1))
    pair.prefill.inbox.append(Cancel(1))
    pair.run(0.005)
    assert pair.decode.said.ends(1) == [Finished(1, FinishReason.CANCELLED)]
    assert pair.decode.core.pages_by_state()["quarantined"] == 5
    pair.run(0.1)
    assert pair.decode.core.pages_by_state()["quarantined"] == 0
    assert_all_back(pair)


@pytest.mark.parametrize("turns", range(0, 60, 3))
def test_cancel_at_any_moment(turns: int) -> None:
    pair = VirtualPair(delay_s=0.004)
    request = make_request(1, range(30), max_tokens=20)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    passed = 0
    for _ in range(turns):
        pair.run(0.001)
        passed = pair.pass_tickets(1, passed)
    pair.decode.inbox.append(Cancel(1))
    pair.prefill.inbox.append(Cancel(1))
    pair.run(0.1)
    pair.pass_tickets(1, passed)  # late
    assert_all_back(pair)
    assert len(pair.decode.said.ends(1)) == 1
    assert len(pair.prefill.said.ends(1)) <= 1
    right = right_tokens(request)
    assert tokens_of(pair, 1) == right[: len(tokens_of(pair, 1))]


def test_deadline_while_filling_is_said_once() -> None:
    pair = VirtualPair(delay_s=0.5)
    request = make_request(1, range(20), max_tokens=4, deadline_s=pair.now + 0.1)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.02)
    pair.pass_tickets(1)
    pair.run(1.0)
    assert len(pair.decode.said.ends(1)) == 1
    assert_all_back(pair)


def test_waits_for_pages_then_goes_on() -> None:
    pair = VirtualPair(num_pages=16)
    first, second = make_request(1, range(100, 140), max_tokens=8), make_request(2, range(30), max_tokens=4)
    pair.decode.inbox += [Generate(first), Adopt(second)]
    pair.prefill.inbox.append(Prefill(second))
    pair.run(0.3)
    pair.pass_tickets(2)
    pair.run(0.3)
    assert pair.decode.said.tokens[1] == right_tokens(first)
    assert tokens_of(pair, 2) == right_tokens(second)


def test_what_can_never_run_is_refused() -> None:
    pair = VirtualPair(num_pages=8)
    pair.decode.inbox += [Adopt(make_request(1, range(100))), Generate(make_request(2, range(100)))]
    pair.decode.inbox.append(Prefill(make_request(3, range(100))))
    pair.run(0.01)
    for id in (1, 2, 3):
        (finished,) = pair.decode.said.ends(id)
        assert isinstance(finished, Finished) and finished.reason is FinishReason.ERROR and finished.message


def test_a_peer_that_answers_its_proof_too_late_is_refused_and_proven_again() -> None:
    pair = VirtualPair(delay_s=0.5)
    pair.decode.inbox += [PeerLeft("p", 1), PeerJoined(pair.prefill.info)]
    pair.run(0.6)  # the golden page lands after the peer was given up
    assert not pair.decode.said.of(PeerStatus)[-1].ready
    pair.delay_s = 0.001
    pair.run(2.0)
    assert pair.decode.said.of(PeerStatus)[-1].ready


def test_a_peer_that_left_is_not_pulled_from() -> None:
    pair = VirtualPair()
    pair.decode.inbox.append(PeerLeft("p", 1))
    request = make_request(1, range(8), max_tokens=3)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.05)
    pair.pass_tickets(1)
    pair.run(0.05)
    (failed,) = pair.decode.said.ends(1)
    assert isinstance(failed, HandoffFailed) and failed.peer_lost


def test_a_source_page_that_got_a_new_owner_is_not_believed() -> None:
    pair = VirtualPair(delay_s=0.02)
    request = make_request(1, range(20), max_tokens=4)
    pair.prefill.inbox.append(Prefill(request))
    pair.decode.inbox.append(Adopt(request))
    pair.run(0.02)
    pair.pass_tickets(1)
    pair.run(0.005)
    page = pair.prefill.core._states[1].lease.pages[2]  # type: ignore[union-attr]
    pair.prefill.pool.generations[page] += 1
    pair.run(0.2)
    (failed,) = pair.decode.said.ends(1)
    assert isinstance(failed, HandoffFailed) and "generation" in failed.message
    pair.prefill.inbox.append(Cancel(1))
    assert_all_back(pair)


def test_illegal_events_change_nothing() -> None:
    leg = DecodeLeg(make_request(1, [1]))
    for event in (LegEvent.PROVEN, LegEvent.BROKEN, LegEvent.SETTLED):
        with pytest.raises(IllegalEvent, match="decode leg 1"):
            leg.go(event)
    assert leg.state is LegState.EXPECTED


def test_prefill_tickets_are_in_order_and_the_last_closes() -> None:
    pair = VirtualPair()
    pair.prefill.inbox.append(Prefill(make_request(1, range(30), max_tokens=4)))
    pair.run(0.1)
    issued = pair.prefill.said.of(TicketIssued, 1)
    assert [ticket.last for ticket in issued] == [False] * (len(issued) - 1) + [True]


def test_pages_are_asked_for_once_the_source_has_its_own_so_two_full_workers_never_wait_for_each_other() -> None:
    pair = VirtualPair(num_pages=12)
    first, second = make_request(1, range(28), max_tokens=3), make_request(2, range(100, 124), max_tokens=3)
    pair.prefill.inbox += [Prefill(first), Prefill(second)]
    pair.decode.inbox += [Adopt(second), Adopt(first)]  # in the other order: each worker has room for one of them
    passed = {1: 0, 2: 0}
    for _ in range(300):
        pair.run(0.001)
        for id in passed:
            passed[id] = pair.pass_tickets(id, passed[id])
            if pair.adopted(id):
                pair.prefill.inbox.append(Release(id))
    for request in (first, second):
        assert tokens_of(pair, request.id) == right_tokens(request)
    assert_all_back(pair)


def test_a_leg_that_is_cancelled_before_its_first_ticket_ends_and_leaves_nothing() -> None:
    pair = VirtualPair()
    pair.decode.inbox += [Adopt(make_request(1, range(9))), Cancel(1)]
    pair.run(0.01)
    assert [end.reason for end in pair.decode.said.ends(1)] == [FinishReason.CANCELLED]
    pair.decode.inbox.append(Adopt(make_request(1, range(9))))
    pair.run(0.01)
    assert len(pair.decode.said.ends(1)) == 1
