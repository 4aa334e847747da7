from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from engine.core.errors import IllegalEvent
from kv_transfer.api import Broken, Cause, Held, Proven, Settled
from kv_transfer.layout import layout_hash
from kv_transfer.session import (
    SESSION_TABLE,
    Effect,
    GenerationRead,
    Session,
    SessionEvent,
    SessionState,
    Source,
)
from kv_transfer.ticket import Ticket
from kv_transfer.transports.base import Completion, OpStatus, PageRead, peer_key
from tests.fakes.handoffs import FIRST, LAYOUT, digests, open_handoff, prompt

SOURCE = Source(peer_key("p", 1), LAYOUT, num_pages=100, max_read_bytes=1 << 20)
TOKENS = prompt(14)  # pages of 4 tokens: three full ones and one with two tokens
SRC = (20, 21, 30, 22)
DST = (5, 6, 7, 8)


def session(num_local: int = 0, deadline_s: float = 100.0) -> Session:
    return Session(open_handoff(1, TOKENS, DST, num_local, deadline_s), LAYOUT, count(1))


def ticket(begin: int = 0, end: int = 14, layers: tuple[int, int] = (0, 3)) -> Ticket:
    pages = SRC[begin // 4 : -(-end // 4)]
    return Ticket(
        id=1,
        worker_id="p",
        incarnation=1,
        layout_hash=layout_hash(LAYOUT),
        token_begin=begin,
        token_end=end,
        layer_begin=layers[0],
        layer_end=layers[1],
        pages=pages,
        generations=tuple(page + 1000 for page in pages),
        digest=digests(TOKENS[:end])[-1],
        expires_ms=5000,
        first=FIRST if end == 14 else None,
    )


def reads(effects: list[Effect]) -> list[PageRead]:
    return [effect for effect in effects if isinstance(effect, PageRead)]


def done(op: int, num_bytes: int = 0, generations: tuple[int, ...] = ()) -> Completion:
    return Completion(op, OpStatus.DONE, num_bytes, generations)


RIGHT = tuple(page + 1000 for page in sorted(SRC))


def test_one_ticket_read_verified_proven() -> None:
    handoff = session()
    (read,) = handoff.on_ticket(ticket(), SOURCE, now=1.0)
    assert read == PageRead(1, SOURCE.peer, (20, 21, 22, 30), (5, 6, 8, 7), 0, 3)
    (check,) = handoff.on_completion(done(1, 4 * LAYOUT.page_bytes), now=1.5)
    assert check == GenerationRead(2, SOURCE.peer, (20, 21, 22, 30))
    assert handoff.state is SessionState.VERIFYING
    outcome = handoff.on_completion(done(2, 32, RIGHT), now=1.6)
    assert outcome == [Proven(1, FIRST, 4 * LAYOUT.page_bytes + 32, pytest.approx(0.6), 4, 0)]
    assert handoff.closed


def test_local_pages_do_not_move() -> None:
    handoff = session(num_local=2)
    (read,) = reads(handoff.on_ticket(ticket(), SOURCE, now=0))
    assert (read.src, read.dst) == ((22, 30), (8, 7))
    (check,) = handoff.on_completion(done(1), now=0)
    assert isinstance(check, GenerationRead) and check.pages == (22, 30)


def test_a_prefix_that_is_all_here_needs_the_first_token_only() -> None:
    tokens = prompt(12)
    handoff = Session(open_handoff(1, tokens, DST[:3], num_local=3), LAYOUT, count(1))
    assert handoff.on_ticket(ticket(end=8), SOURCE, now=0) == []
    last = replace(ticket(begin=8, end=12), first=FIRST)
    assert handoff.on_ticket(last, SOURCE, now=0) == [Proven(1, FIRST, 0, 0.0, 0, 3)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_chunks_in_any_order_and_repeated(order: tuple[int, ...]) -> None:
    chunks = [ticket(0, 4), ticket(4, 12), ticket(12, 14)]
    handoff = session()
    ops = []
    for index in (*order, *order):
        ops += [read.op for read in reads(handoff.on_ticket(chunks[index], SOURCE, now=0))]
    assert len(ops) == 3, "a repeated ticket must not read again"
    effects: list[Effect] = []
    for op in ops:
        effects = handoff.on_completion(done(op), now=0)
    assert isinstance(effects[0], GenerationRead) and effects[0].pages == (20, 21, 22, 30)


def test_layer_groups_while_prefill_still_computes() -> None:
    handoff = session()
    for layers in ((0, 1), (2, 3), (1, 2)):
        (read,) = reads(handoff.on_ticket(ticket(layers=layers), SOURCE, now=0))
        assert (read.layer_begin, read.layer_end) == layers
        effects = handoff.on_completion(done(read.op), now=0)
    assert isinstance(effects[0], GenerationRead)


def test_overlapping_layer_ranges_read_only_what_is_missing() -> None:
    handoff = session()
    handoff.on_ticket(ticket(layers=(1, 2)), SOURCE, now=0)
    spans = {(read.layer_begin, read.layer_end) for read in reads(handoff.on_ticket(ticket(), SOURCE, now=0))}
    assert spans == {(0, 1), (2, 3)}


def test_reads_are_split_to_the_limit() -> None:
    source = replace(SOURCE, max_read_bytes=2 * LAYOUT.page_bytes)
    assert [len(read.src) for read in reads(session().on_ticket(ticket(), source, now=0))] == [2, 2]


def test_nothing_is_proven_before_the_last_ticket() -> None:
    handoff = session()
    handoff.on_ticket(ticket(end=12), SOURCE, now=0)
    assert handoff.on_completion(done(1), now=0) == []
    assert handoff.state is SessionState.PULLING


@pytest.mark.parametrize("wrong", [(1020, 1021, 1022, 1031), (1020, 1021, 1022), (), (*RIGHT, 1)])
def test_a_changed_generation_proves_nothing(wrong: tuple[int, ...]) -> None:
    handoff = session()
    handoff.on_ticket(ticket(), SOURCE, now=0)
    handoff.on_completion(done(1), now=0)
    broken, settled = handoff.on_completion(done(2, 0, wrong), now=0)
    assert isinstance(broken, Broken) and broken.cause is Cause.GENERATION
    assert settled == Settled(1)


REFUSALS: dict[str, tuple[Callable[[Ticket], Ticket], Cause]] = {
    "another request": (lambda t: replace(t, id=2), Cause.TICKET),
    "another prompt": (lambda t: replace(t, digest=bytes(16)), Cause.DIGEST),
    "another layout": (lambda t: replace(t, layout_hash=bytes(16)), Cause.LAYOUT),
    "a page outside the pool": (lambda t: replace(t, pages=(20, 21, 100, 22)), Cause.TICKET),
    "too many pages": (lambda t: replace(t, pages=(*SRC, 1), generations=(1, 2, 3, 4, 5)), Cause.TICKET),
    "too few pages": (lambda t: replace(t, pages=SRC[:3], generations=(1, 2, 3)), Cause.TICKET),
    "past the prompt": (lambda t: replace(t, token_end=15), Cause.TICKET),
    "an end inside a page": (lambda t: replace(t, token_end=13), Cause.TICKET),
    "a beginning inside a page": (lambda t: replace(t, token_begin=1), Cause.TICKET),
    "too many layers": (lambda t: replace(t, layer_end=4), Cause.TICKET),
}


@pytest.mark.parametrize("case", sorted(REFUSALS))
def test_a_ticket_that_does_not_fit_is_refused_before_any_read(case: str) -> None:
    change, cause = REFUSALS[case]
    broken, settled = session().on_ticket(change(ticket()), SOURCE, now=0)
    assert isinstance(broken, Broken) and broken.cause is cause
    assert settled == Settled(1)


def test_an_unproven_peer_is_refused() -> None:
    broken, _ = session().on_ticket(ticket(), None, now=0)
    assert isinstance(broken, Broken) and broken.cause is Cause.PEER


def test_a_second_worker_for_the_same_attempt_is_refused() -> None:
    handoff = session()
    handoff.on_ticket(ticket(end=4), SOURCE, now=0)
    (broken,) = handoff.on_ticket(ticket(), replace(SOURCE, peer="other@1"), now=0)
    assert isinstance(broken, Broken) and broken.cause is Cause.TICKET


def test_contradicting_tickets_are_refused() -> None:
    handoff = session()
    handoff.on_ticket(ticket(layers=(0, 1)), SOURCE, now=0)
    moved = replace(ticket(layers=(1, 3)), pages=(20, 21, 31, 22))
    (broken,) = handoff.on_ticket(moved, SOURCE, now=0)
    assert isinstance(broken, Broken) and broken.cause is Cause.TICKET


def stop_by_cancel(handoff: Session) -> list[Effect]:
    return handoff.on_cancel()


def stop_by_fault(handoff: Session) -> list[Effect]:
    return [effect for effect in handoff.on_fault(Cause.PEER, "lost") if not isinstance(effect, Broken)]


STOPS = [stop_by_cancel, stop_by_fault]


@pytest.mark.parametrize("stop", STOPS)
def test_pages_stay_quarantined_until_the_last_read_has_ended(stop: Callable[[Session], list[Effect]]) -> None:
    handoff = session()
    source = replace(SOURCE, max_read_bytes=LAYOUT.page_bytes)
    asked = reads(handoff.on_ticket(ticket(), source, now=0))
    ops = [read.op for read in asked]
    pages = [read.dst for read in asked]
    assert stop(handoff) == []
    assert handoff.state is SessionState.CANCELLING
    assert handoff.on_withdrawn(()) == [Held(1, frozenset(page for each in pages for page in each))]
    assert handoff.on_withdrawn(()) == [], "nothing has changed"
    for i, op in enumerate(ops[:-1], start=1):
        left = frozenset(page for each in pages[i:] for page in each)
        assert handoff.on_completion(done(op), now=0) == [Held(1, left)]
    assert handoff.on_completion(Completion(ops[-1], OpStatus.FAILED), now=0) == [Settled(1)]
    assert handoff.state is SessionState.FAILED


@pytest.mark.parametrize("stop", STOPS)
def test_pages_of_reads_that_were_never_posted_are_not_held(stop: Callable[[Session], list[Effect]]) -> None:
    handoff = session()
    first, *others = reads(handoff.on_ticket(ticket(), replace(SOURCE, max_read_bytes=LAYOUT.page_bytes), now=0))
    stop(handoff)
    assert handoff.on_completion(Completion(first.op, OpStatus.FAILING), now=0) == [], "it is not over"
    assert handoff.on_withdrawn([read.op for read in others]) == [Held(1, frozenset(first.dst))]
    assert handoff.on_completion(Completion(first.op, OpStatus.FAILED), now=0) == [Settled(1)]
    handoff = session()
    ops = [read.op for read in reads(handoff.on_ticket(ticket(), SOURCE, now=0))]
    stop(handoff)
    assert handoff.on_withdrawn(ops) == [Settled(1)]


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_while_verifying_waits_for_the_generations(stop: Callable[[Session], list[Effect]]) -> None:
    handoff = session()
    handoff.on_ticket(ticket(), SOURCE, now=0)
    handoff.on_completion(done(1), now=0)
    assert stop(handoff) == []
    assert handoff.on_withdrawn(()) == [Held(1, frozenset())], "generations land elsewhere"
    assert handoff.on_completion(done(2, 0, RIGHT), now=0) == [Settled(1)]


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_with_nothing_in_flight_settles_at_once(stop: Callable[[Session], list[Effect]]) -> None:
    assert stop(session()) == [Settled(1)]
    handoff = session()
    handoff.on_ticket(ticket(end=4), SOURCE, now=0)
    handoff.on_completion(done(1), now=0)
    assert stop(handoff) == [Settled(1)]


@pytest.mark.parametrize("first", STOPS)
@pytest.mark.parametrize("second", STOPS)
def test_stopping_twice_says_nothing_twice(
    first: Callable[[Session], list[Effect]], second: Callable[[Session], list[Effect]]
) -> None:
    handoff = session()
    handoff.on_ticket(ticket(), SOURCE, now=0)
    first(handoff)
    assert second(handoff) == []
    assert handoff.on_ticket(ticket(), SOURCE, now=0) == []
    handoff.on_completion(done(1), now=0)
    assert first(handoff) == [] and second(handoff) == []
    assert handoff.on_tick(1e12) == []


def test_a_failed_read_breaks_and_names_the_cause() -> None:
    for lost, cause in ((True, Cause.PEER), (False, Cause.TRANSPORT)):
        handoff = session()
        handoff.on_ticket(ticket(), SOURCE, now=0)
        effects = handoff.on_completion(Completion(1, OpStatus.FAILED, peer_lost=lost, message="why"), now=0)
        assert effects == [Broken(1, cause, "why"), Settled(1)]


def test_the_deadline_and_the_lease_end_it() -> None:
    handoff = session(deadline_s=10.0)
    assert handoff.on_tick(9.9) == []
    broken, _ = handoff.on_tick(10.0)
    assert isinstance(broken, Broken) and broken.cause is Cause.DEADLINE
    handoff = session(deadline_s=10.0)
    handoff.on_ticket(ticket(), SOURCE, now=1.0)
    assert handoff.gives_up_s == 6.0
    (broken,) = handoff.on_tick(6.0)
    assert isinstance(broken, Broken) and broken.cause is Cause.EXPIRED
    assert handoff.gives_up_s == float("inf")


def test_a_read_of_somebody_else_is_illegal_and_changes_nothing() -> None:
    handoff = session()
    handoff.on_ticket(ticket(), SOURCE, now=0)
    with pytest.raises(IllegalEvent):
        handoff.on_completion(done(99), now=0)
    assert (handoff.state, handoff.reads_in_flight) == (SessionState.PULLING, {1})


@pytest.mark.parametrize(("pages", "num_local"), [((1, 2, 3), 0), ((1, 2, 3, 4, 5), 0), (DST, 4), (DST, -1)])
def test_pages_must_fit_the_tokens(pages: tuple[int, ...], num_local: int) -> None:
    with pytest.raises(IllegalEvent):
        Session(open_handoff(1, TOKENS, pages, num_local), LAYOUT, count(1))


@pytest.mark.parametrize("state", SessionState)
@pytest.mark.parametrize("event", SessionEvent)
def test_the_table_is_the_only_way(state: SessionState, event: SessionEvent) -> None:
    handoff = session()
    handoff.state = state
    target = SESSION_TABLE[state].get(event)
    if target is None:
        with pytest.raises(IllegalEvent):
            handoff._go(event)
        assert handoff.state is state
    else:
        handoff._go(event)
        assert handoff.state is target
