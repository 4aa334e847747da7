"""A ticket is good for the request and the pages that it was sealed for, however authentic it stays."""

from dataclasses import replace

import pytest

from engine.core.messages import Adopt, Cancel, DeliverTicket, HandoffFailed, Prefill, Release, TicketIssued
from tests.fakes.virtual_worker import VirtualPair, make_request, right_tokens

NUM_TOKENS = 20


def recorded(pair: VirtualPair) -> list[bytes]:
    """Tickets of request 1, which has ended everywhere."""
    request = make_request(1, range(NUM_TOKENS), max_tokens=4)
    pair.prefill.inbox.append(Prefill(request))
    pair.run(0.05)
    pair.prefill.inbox.append(Release(1))
    pair.run(0.05)
    return [issued.ticket for issued in pair.prefill.said.of(TicketIssued, 1)]


def replay(pair: VirtualPair, id: int, tickets: list[bytes], salt: bytes = b"") -> HandoffFailed | None:
    """Why decode refuses them as tickets of `id`; None: it takes them."""
    request = replace(make_request(id, range(NUM_TOKENS), max_tokens=4), cache_salt=salt)
    pair.decode.inbox += [Adopt(request), *(DeliverTicket(id, ticket) for ticket in tickets)]
    pair.run(0.3)
    ends = pair.decode.said.ends(id)
    pair.decode.inbox.append(Cancel(id))
    pair.run(0.1)
    assert pair.decode.num_held_pages == 0
    return next((end for end in ends if isinstance(end, HandoffFailed)), None)


def test_for_another_request() -> None:
    pair = VirtualPair()
    failed = replay(pair, 2, recorded(pair))
    assert failed is not None and "of request 1 was delivered for request 2" in failed.message
    assert not pair.decode.said.tokens.get(2)


def test_for_the_same_prompt_of_another_tenant() -> None:
    pair = VirtualPair()
    failed = replay(pair, 1, recorded(pair), salt=b"another tenant")
    assert failed is not None and "digest" in failed.message
    assert not pair.decode.said.tokens.get(1)


@pytest.mark.parametrize("num_others", [0, 40])
def test_after_its_pages_have_become_others(num_others: int) -> None:
    """While the pages are still those of the prompt they give right tokens; afterwards the generations tell."""
    pair = VirtualPair()
    tickets = recorded(pair)
    for other in range(num_others):
        pair.prefill.inbox += [Prefill(make_request(100 + other, [other + 50] * 30, max_tokens=2))]
        pair.run(0.05)
        pair.prefill.inbox.append(Release(100 + other))
        pair.run(0.02)
    failed = replay(pair, 1, tickets)
    if num_others:
        assert failed is not None and "got a new owner" in failed.message
        assert not pair.decode.said.tokens.get(1)
    else:
        right = right_tokens(make_request(1, range(NUM_TOKENS), max_tokens=4))
        assert failed is None and pair.decode.said.tokens[1] == right[1:]
