"""Whatever arrives as a ticket: it is the one that was sealed, or it is refused with an error of the tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import InvalidRequest, Unauthenticated
from engine.core.types import TokenLogprob
from kv_transfer.api import FirstToken
from kv_transfer.ticket import Ticket, _mac, open_ticket, seal_ticket

KEY = b"the cluster key of this test"

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
i32 = st.integers(-(2**31), 2**31 - 1)
logprobs = st.builds(
    TokenLogprob,
    i32,
    st.floats(max_value=0, allow_nan=False),
    st.lists(st.tuples(i32, st.floats(max_value=0, allow_nan=False)), max_size=5).map(tuple),
)
sources = st.lists(st.tuples(u32, u64), min_size=1, max_size=20)
ids = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable() and len(text.encode()) <= 255)


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    token_begin, layer_begin = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**16 - 2))
    pages, generations = zip(*draw(sources), strict=True)
    return Ticket(
        id=draw(u64),
        worker_id=draw(ids),
        incarnation=draw(u64),
        layout_hash=draw(st.binary(min_size=16, max_size=16)),
        token_begin=token_begin,
        token_end=draw(st.integers(token_begin + 1, 2**32 - 1)),
        layer_begin=layer_begin,
        layer_end=draw(st.integers(layer_begin + 1, 2**16 - 1)),
        pages=pages,
        generations=generations,
        digest=draw(st.binary(min_size=16, max_size=16)),
        expires_ms=draw(u32),
        first=draw(st.none() | st.builds(FirstToken, i32, st.none() | logprobs, u32)),
    )


@given(tickets())
def test_round_trip(ticket: Ticket) -> None:
    assert open_ticket(seal_ticket(ticket, KEY), KEY) == ticket


@given(tickets(), st.data())
def test_any_changed_byte_is_refused(ticket: Ticket, data: st.DataObject) -> None:
    sealed = bytearray(seal_ticket(ticket, KEY))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unauthenticated):
        open_ticket(bytes(sealed), KEY)


@given(tickets(), st.data())
def test_any_cut_is_refused(ticket: Ticket, data: st.DataObject) -> None:
    sealed = seal_ticket(ticket, KEY)
    with pytest.raises(Unauthenticated):
        open_ticket(sealed[: data.draw(st.integers(0, len(sealed) - 1))], KEY)


@given(st.binary(max_size=400))
def test_an_authentic_body_of_any_bytes_is_a_ticket_or_refused(body: bytes) -> None:
    try:
        ticket = open_ticket(body + _mac(body, KEY), KEY)
    except InvalidRequest:
        return
    assert seal_ticket(ticket, KEY)[:-32] == body


@given(tickets(), st.data())
def test_an_authentic_but_damaged_ticket_is_a_ticket_or_refused(ticket: Ticket, data: st.DataObject) -> None:
    """A worker with a bug holds the key too."""
    body = bytearray(seal_ticket(ticket, KEY)[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        open_ticket(bytes(body) + _mac(bytes(body), KEY), KEY)
    except InvalidRequest:
        return
