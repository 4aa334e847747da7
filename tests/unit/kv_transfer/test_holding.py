"""What the source of a handoff says, and how long it holds pages."""

import itertools
from dataclasses import replace

import pytest

from engine.core.digest import root_digest
from engine.core.errors import IllegalEvent
from engine.core.messages import (
    Adopt,
    Cancel,
    DeliverTicket,
    Finished,
    HandoffFailed,
    PeerLeft,
    Prefill,
    Release,
    TicketIssued,
)
from engine.core.types import FinishReason
from engine.server.role import Ended
from kv_transfer.holding import Leg, LegEvent, LegState
from kv_transfer.layout import layout_hash
from kv_transfer.plan import PrefixDigests
from kv_transfer.ticket import open_ticket
from tests.fakes.virtual_worker import KEY, PAGE_SIZE, VirtualPair, VirtualWorker, make_request, right_tokens


def worker() -> tuple[VirtualPair, VirtualWorker]:
    pair = VirtualPair()
    return pair, pair.prefill


def tickets(prefill: VirtualWorker, id: int) -> list:
    return [open_ticket(issued.ticket, KEY) for issued in prefill.said.of(TicketIssued, id)]


def test_tickets_name_every_page_of_the_prompt_once_and_prove_it() -> None:
    pair, prefill = worker()
    request = make_request(1, range(26), max_tokens=5, deadline_s=100.0)
    prefill.inbox.append(Prefill(request))
    pair.run(0.05)
    issued = tickets(prefill, 1)
    assert len(issued) > 1
    ranges = [(ticket.token_begin, ticket.token_end) for ticket in issued]
    assert ranges[0][0] == 0 and ranges[-1][1] == 26
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(ranges))
    digests = PrefixDigests(root_digest(b"", "model"), request.tokens, PAGE_SIZE)
    for ticket in issued:
        assert ticket.digest == digests.at(ticket.token_end)
        assert (ticket.id, ticket.worker_id, ticket.incarnation) == (1, "p", 1)
        assert ticket.layout_hash == layout_hash(prefill.pool.layout)
        assert ticket.generations == tuple(prefill.pool.generations[page] for page in ticket.pages)
        assert 99_000 < ticket.expires_ms < 100_000
    assert [ticket.first is None for ticket in issued] == [True] * (len(issued) - 1) + [False]
    assert issued[-1].first.token == right_tokens(request)[0]


def test_the_last_ticket_carries_what_decode_cannot_know() -> None:
    pair, prefill = worker()
    prefill.inbox.append(Prefill(make_request(1, range(16), max_tokens=5)))
    pair.run(0.05)
    prefill.inbox.append(Prefill(make_request(2, range(18), max_tokens=5, num_logprobs=1)))
    pair.run(0.05)
    first = tickets(prefill, 2)[-1].first
    assert first.cached_tokens == 16
    assert first.logprob is not None and first.logprob.token == first.token


def test_another_salt_is_another_prefix() -> None:
    pair, prefill = worker()
    plain = make_request(1, range(8), max_tokens=5)
    salted = type(plain)(
        **{name: getattr(plain, name) for name in plain.__slots__} | {"id": 2, "cache_salt": b"tenant"}
    )
    prefill.inbox += [Prefill(plain), Prefill(salted)]
    pair.run(0.05)
    assert tickets(prefill, 1)[-1].digest != tickets(prefill, 2)[-1].digest


@pytest.mark.parametrize(("command", "how"), [(Release, "released"), (Cancel, "cancelled")])
def test_held_pages_are_let_go_once(command: type[Release | Cancel], how: str) -> None:
    pair, prefill = worker()
    prefill.inbox.append(Prefill(make_request(1, range(20), max_tokens=5)))
    pair.run(0.05)
    assert prefill.num_held_pages == 5
    prefill.inbox += [command(1), command(1), Release(1), Cancel(1)]
    pair.run(0.01)
    assert prefill.num_held_pages == 0
    assert prefill.said.ends(1) == [Ended(1, how)]


def test_the_lease_of_held_pages_runs_out() -> None:
    pair, prefill = worker()
    prefill.inbox.append(Prefill(make_request(1, range(20), max_tokens=5, deadline_s=pair.now + 0.1)))
    pair.run(0.05)
    assert prefill.num_held_pages == 5
    pair.run(0.1)
    assert prefill.num_held_pages == 0
    assert prefill.said.ends(1) == [Ended(1, "expired")]
    prefill.inbox.append(Release(1))
    pair.run(0.01)
    assert len(prefill.said.ends(1)) == 1


@pytest.mark.parametrize("command", [Release, Cancel])
def test_let_go_while_computing_ends_it(command: type[Release | Cancel]) -> None:
    pair, prefill = worker()
    prefill.inbox.append(Prefill(make_request(1, range(60), max_tokens=5)))
    pair.run(0.003)
    prefill.inbox.append(command(1))
    pair.run(0.02)
    assert prefill.said.ends(1) == [Finished(1, FinishReason.CANCELLED)]
    assert not [ticket for ticket in prefill.said.of(TicketIssued) if ticket.last]
    assert prefill.num_held_pages == 0


def test_a_prompt_that_ends_with_its_first_token_holds_nothing() -> None:
    pair, prefill = worker()
    request = make_request(1, range(10), max_tokens=5)
    stop = right_tokens(request)[0]
    prefill.inbox.append(Prefill(make_request(1, range(10), max_tokens=5, stop_token_ids=(stop,))))
    pair.run(0.05)
    assert prefill.said.ends(1) == [Finished(1, FinishReason.STOP, stop_token=stop)]
    assert prefill.said.tokens[1] == [stop]
    assert prefill.num_held_pages == 0


def test_deadline_while_computing() -> None:
    pair, prefill = worker()
    prefill.inbox.append(Prefill(make_request(1, range(60), max_tokens=5, deadline_s=pair.now + 0.003)))
    pair.run(0.05)
    assert prefill.said.ends(1) == [Finished(1, FinishReason.DEADLINE)]
    assert prefill.num_held_pages == 0


def test_what_it_cannot_do_is_refused_in_words() -> None:
    pair, prefill = worker()
    prefill.inbox += [Prefill(make_request(1, range(1000))), Adopt(make_request(2, range(1000)))]
    prefill.inbox += [DeliverTicket(3, b""), PeerLeft("x", 1), Release(9), Cancel(9)]
    pair.run(0.01)
    for id in (1, 2):
        assert "1000 tokens" in prefill.said.ends(id)[0].message
    assert len(prefill.said.words) == 2


def test_illegal_events_change_nothing() -> None:
    leg = Leg(make_request(1, [1]), PrefixDigests(b"", make_request(1, [1]).tokens, 4))
    with pytest.raises(IllegalEvent, match="prefill leg 1: 'let go' in state 'computing'"):
        leg.go(LegEvent.LET_GO)
    assert leg.state is LegState.COMPUTING


def test_pages_that_more_urgent_requests_need_are_taken_back_and_the_router_is_told() -> None:
    pair = VirtualPair(num_pages=12)
    prefill = pair.prefill
    prefill.inbox.append(Prefill(replace(make_request(1, range(32), max_tokens=5), priority=1)))
    while not prefill.said.of(TicketIssued, 1):
        pair.run(0.001)
    prefill.inbox.append(Prefill(make_request(2, range(100, 140), max_tokens=5)))
    pair.run(0.05)
    (failed,) = prefill.said.ends(1)
    assert isinstance(failed, HandoffFailed) and not failed.peer_lost
    assert tickets(prefill, 2)[-1].first is not None
    prefill.inbox += [Cancel(1), Release(2)]
    pair.run(0.05)
    assert len(prefill.said.ends(1)) == 1 and prefill.num_held_pages == 0
