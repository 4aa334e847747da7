import struct
from dataclasses import replace

import pytest

from engine.core.errors import BatonError, InvalidRequest, Unauthenticated
from engine.core.types import TokenLogprob
from kv_transfer.api import FirstToken
from kv_transfer.ticket import _HEAD, Ticket, _mac, open_ticket, seal_ticket

KEY = b"sixteen bytes or more"
TICKET = Ticket(
    id=2**64 - 1,
    worker_id="prefill-é",
    incarnation=2**63,
    layout_hash=bytes(range(16)),
    token_begin=32,
    token_end=75,
    layer_begin=4,
    layer_end=8,
    pages=(7, 2**32 - 1, 0),
    generations=(1, 2**64 - 1, 3),
    digest=bytes(16),
    expires_ms=30_000,
    first=FirstToken(5, TokenLogprob(5, -0.25, ((5, -0.25), (9, -1.5))), 64),
)


@pytest.mark.parametrize(
    "ticket",
    [
        TICKET,
        replace(TICKET, first=None),
        replace(TICKET, first=FirstToken(0, None, 0)),
        replace(TICKET, first=FirstToken(0, TokenLogprob(1, float("-inf")), 0)),
    ],
)
def test_what_was_sealed_is_opened(ticket: Ticket) -> None:
    assert open_ticket(seal_ticket(ticket, KEY), KEY) == ticket


def test_a_ticket_is_small() -> None:
    pages = tuple(range(64))
    assert len(seal_ticket(replace(TICKET, pages=pages, generations=pages, first=None), KEY)) < 64 * 12 + 128


def test_another_key_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="HMAC"):
        open_ticket(seal_ticket(TICKET, KEY), KEY + b"!")


@pytest.mark.parametrize("data", [b"", b"BT", bytes(31), bytes(32), bytes(1000)])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Unauthenticated):
        open_ticket(data, KEY)


def test_a_short_key_is_refused_on_both_sides() -> None:
    with pytest.raises(InvalidRequest, match="16"):
        seal_ticket(TICKET, b"short")
    with pytest.raises(InvalidRequest, match="16"):
        open_ticket(seal_ticket(TICKET, KEY), b"")


@pytest.mark.parametrize(
    "change",
    [
        {"pages": (1,), "generations": (1, 2)},
        {"pages": (), "generations": ()},
        {"token_begin": 75},
        {"token_begin": -1},
        {"layer_begin": 8},
        {"layer_end": 1 << 16},
        {"pages": (2**32, 0, 0)},
        {"generations": (-1, 0, 0)},
        {"id": 2**64},
        {"digest": b"short"},
        {"layout_hash": bytes(17)},
        {"worker_id": ""},
        {"worker_id": "x" * 256},
        {"expires_ms": -1},
    ],
)
def test_what_no_honest_ticket_says_is_not_sealed(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        seal_ticket(replace(TICKET, **change), KEY)  # type: ignore[arg-type]


def reseal(body: bytes) -> bytes:
    """An authentic ticket with any body: what a worker with a bug, or with another version, would send."""
    return body + _mac(body, KEY)


def test_authentic_but_malformed_is_refused_at_every_length() -> None:
    body = seal_ticket(TICKET, KEY)[:-32]
    for length in range(len(body)):
        with pytest.raises(InvalidRequest):
            open_ticket(reseal(body[:length]), KEY)
    with pytest.raises(InvalidRequest, match="1 bytes too many"):
        open_ticket(reseal(body + b"\0"), KEY)


def test_counts_are_bounded_before_anything_is_read() -> None:
    body = seal_ticket(replace(TICKET, worker_id="w", first=None), KEY)[:-32]
    at = _HEAD.size + 2
    assert body[at : at + 4] == struct.pack("<I", 3)
    for count in (2**32 - 1, (1 << 20) + 1, 4):
        with pytest.raises(InvalidRequest):
            open_ticket(reseal(body[:at] + struct.pack("<I", count) + body[at + 4 :]), KEY)


def test_another_version_is_named() -> None:
    body = bytearray(seal_ticket(TICKET, KEY)[:-32])
    body[2] = 9
    with pytest.raises(InvalidRequest, match="version 9"):
        open_ticket(reseal(bytes(body)), KEY)


def test_errors_never_show_the_key() -> None:
    for damaged in (b"", reseal(b""), seal_ticket(TICKET, KEY) + b"x"):
        with pytest.raises(BatonError) as caught:
            open_ticket(damaged, KEY)
        assert KEY.decode() not in str(caught.value)
