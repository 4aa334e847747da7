"""Every worker can do everything: be the source of pages, take them over, and run whole requests, all at once."""

from dataclasses import replace

from engine.core.messages import (
    Adopt,
    Adopted,
    Cancel,
    DeliverTicket,
    Finished,
    Generate,
    PeerJoined,
    PeerStatus,
    Prefill,
    Release,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, Request, token_buffer
from tests.fakes.virtual_worker import PAGE_SIZE, VirtualPair, VirtualWorker, make_request, right_tokens


def pass_all(pair: VirtualPair, source: VirtualWorker, target: VirtualWorker, id: int) -> None:
    """Tickets as they come, until `target` owns the pages; then the source lets go."""
    passed = 0
    for _ in range(200):
        pair.run(0.001)
        issued = source.said.of(TicketIssued, id)
        target.inbox.extend(DeliverTicket(id, ticket.ticket) for ticket in issued[passed:])
        passed = len(issued)
        if target.said.of(Adopted, id):
            break
    source.inbox.append(Release(id))


def both_ways() -> VirtualPair:
    pair = VirtualPair()
    pair.prefill.inbox.append(PeerJoined(pair.decode.info))
    pair.run(0.05)
    assert pair.prefill.said.of(PeerStatus)[-1].ready
    return pair


def resumed(request: Request, id: int, emitted: list[int]) -> Request:
    """What a router sends to go on after `emitted`."""
    return replace(request, id=id, tokens=token_buffer([*request.tokens, *emitted]))


def test_handoffs_cross_between_two_workers() -> None:
    pair = both_ways()
    there, back = make_request(1, range(30), max_tokens=8), make_request(2, range(100, 125), max_tokens=8)
    pair.prefill.inbox += [Prefill(there), Adopt(back)]
    pair.decode.inbox += [Adopt(there), Prefill(back)]
    pass_all(pair, pair.prefill, pair.decode, 1)
    pass_all(pair, pair.decode, pair.prefill, 2)
    pair.run(0.1)
    assert pair.prefill.said.tokens[1] + pair.decode.said.tokens[1] == right_tokens(there)
    assert pair.decode.said.tokens[2] + pair.prefill.said.tokens[2] == right_tokens(back)
    assert pair.prefill.num_held_pages == pair.decode.num_held_pages == 0


def test_a_running_decode_moves_with_its_pages() -> None:
    """Cancelled where it decodes, then prefilled there from the cache and adopted elsewhere: as a drain does it."""
    pair = both_ways()
    request = make_request(1, range(30), max_tokens=40)
    pair.decode.inbox.append(Generate(request))
    while len(emitted := pair.decode.said.tokens.get(1, [])) < 13:
        pair.run(0.001)
    emitted = emitted[:12]  # the last frame has not reached the router
    moved = resumed(request, 2, emitted)
    pair.decode.inbox += [Cancel(1), Prefill(moved)]
    pair.prefill.inbox.append(Adopt(moved))
    pass_all(pair, pair.decode, pair.prefill, 2)
    pair.run(0.2)
    assert emitted + pair.decode.said.tokens[2] + pair.prefill.said.tokens[2] == right_tokens(request)
    assert pair.decode.said.ends(1) == [Finished(1, FinishReason.CANCELLED)]
    (started,) = pair.decode.said.of(Started, 2)
    assert len(moved.tokens) - started.cached_tokens <= PAGE_SIZE
    (adopted,) = pair.prefill.said.of(Adopted, 2)
    assert adopted.pulled_pages == -(-len(moved.tokens) // PAGE_SIZE)
    assert pair.prefill.num_held_pages == pair.decode.num_held_pages == 0


def test_release_ends_nothing_but_held_pages() -> None:
    pair = both_ways()
    request = make_request(1, range(20), max_tokens=9)
    pair.decode.inbox += [Generate(request), Release(1)]
    pair.run(0.1)
    assert pair.decode.said.tokens[1] == right_tokens(request)
