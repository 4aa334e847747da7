"""The ticket: what a prefill worker says about final pages, and the only thing that a decode worker believes.

On the wire a ticket is   magic "BT" | version | fields, little-endian | HMAC-SHA256 of all before   and nothing is
read before the HMAC over it was compared in constant time. Lists and strings are length-prefixed; no pickle.
"""

import hmac
import struct
from array import array
from dataclasses import dataclass
from struct import Struct

from engine.core.digest import DIGEST_BYTES
from engine.core.errors import InvalidRequest, Unauthenticated
from engine.core.types import TokenLogprob
from kv_transfer.api import FirstToken

MAX_PAGES = 1 << 20
MAX_EXPIRES_MS = (1 << 32) - 1
"""49 days: a longer lease is cut to it."""
MAX_TOP = 4096
MAX_ID_BYTES = 255
MIN_KEY_BYTES = 16

_HEAD = Struct("<2sBQQ16s16sIIHHI")
"""Magic, version, request id, incarnation, layout hash, digest, token range, layer range, milliseconds left."""
_COUNT = Struct("<I")
_ID_LENGTH = Struct("<B")
_FIRST = Struct("<iI?")
_LOGPROB = Struct("<idH")
_TOP = Struct("<id")
_MAGIC = b"BT"
_VERSION = 1
_MAC_BYTES = 32
_DOMAIN = b"baton ticket v1\0"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Pages that hold layers [layer_begin, layer_end) of tokens [token_begin, token_end) of one request attempt.

    token_begin is a multiple of the page size; token_end is one too, or the end of the prompt.
    """

    id: int
    worker_id: str
    incarnation: int
    """Of the prefill worker: pages and generations mean nothing under another one."""
    layout_hash: bytes
    """kv_transfer.layout.layout_hash of the pages' layout."""
    token_begin: int
    token_end: int
    layer_begin: int
    layer_end: int
    pages: tuple[int, ...]
    generations: tuple[int, ...]
    """Of `pages`, when they became final."""
    digest: bytes
    """Chained, salted digest of all tokens up to token_end (engine.core.digest)."""
    expires_ms: int
    """What is left of the prefill side's lease; on the wire so that clocks need not agree."""
    first: FirstToken | None = None
    """On the last ticket of the prompt only."""


def seal_ticket(ticket: Ticket, key: bytes) -> bytes:
    """The ticket's bytes with their HMAC under the cluster key.

    Raises:
        InvalidRequest: the key is shorter than 16 bytes, or a field does not fit the format.
    """
    try:
        body = _encode(ticket)
    except (struct.error, OverflowError) as error:
        raise InvalidRequest(f"ticket of request {ticket.id}: a field is out of range: {error}") from error
    return body + _mac(body, key)


def open_ticket(sealed: bytes, key: bytes) -> Ticket:
    """The ticket in `sealed`.

    Raises:
        Unauthenticated: the HMAC does not fit: damaged, or made with another key.
        InvalidRequest: authentic, but malformed or of another version.
    """
    body, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(body, key)):
        raise Unauthenticated("ticket refused: its HMAC does not fit (damaged, or sealed with another cluster key)")
    try:
        return _decode(_Reader(body))
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidRequest(f"ticket refused: malformed ({error})") from error


def _mac(body: bytes, key: bytes) -> bytes:
    if len(key) < MIN_KEY_BYTES:
        raise InvalidRequest(f"the cluster key has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return hmac.digest(key, _DOMAIN + body, "sha256")


def _encode(ticket: Ticket) -> bytes:
    worker = ticket.worker_id.encode()
    _check(ticket, len(worker))
    head = _HEAD.pack(
        _MAGIC,
        _VERSION,
        ticket.id,
        ticket.incarnation,
        ticket.layout_hash,
        ticket.digest,
        ticket.token_begin,
        ticket.token_end,
        ticket.layer_begin,
        ticket.layer_end,
        min(ticket.expires_ms, MAX_EXPIRES_MS),
    )
    pages = b"".join((_COUNT.pack(len(ticket.pages)), _array("I", ticket.pages), _array("Q", ticket.generations)))
    return head + _ID_LENGTH.pack(len(worker)) + worker + pages + _encode_first(ticket.first)


def _encode_first(first: FirstToken | None) -> bytes:
    if first is None:
        return b"\0"
    parts = [b"\1", _FIRST.pack(first.token, first.cached_tokens, first.logprob is not None)]
    if first.logprob is not None:
        parts.append(_LOGPROB.pack(first.logprob.token, first.logprob.logprob, len(first.logprob.top)))
        parts.extend(_TOP.pack(token, logprob) for token, logprob in first.logprob.top)
    return b"".join(parts)


def _decode(reader: "_Reader") -> Ticket:
    magic, version, id_, incarnation, layout, digest, token_begin, token_end, layer_begin, layer_end, expires_ms = (
        reader.unpack(_HEAD)
    )
    if magic != _MAGIC or version != _VERSION:
        raise InvalidRequest(f"ticket refused: format {magic!r} version {version}, this worker speaks {_VERSION}")
    (id_length,) = reader.unpack(_ID_LENGTH)
    worker_id = reader.take(id_length).decode()
    (count,) = reader.unpack(_COUNT)
    if count > MAX_PAGES:
        raise InvalidRequest(f"ticket refused: {count} pages, at most {MAX_PAGES} are allowed")
    ticket = Ticket(
        id=id_,
        worker_id=worker_id,
        incarnation=incarnation,
        layout_hash=layout,
        token_begin=token_begin,
        token_end=token_end,
        layer_begin=layer_begin,
        layer_end=layer_end,
        pages=reader.array("I", count),
        generations=reader.array("Q", count),
        digest=digest,
        expires_ms=expires_ms,
        first=_decode_first(reader),
    )
    reader.finish()
    _check(ticket, id_length)
    return ticket


def _decode_first(reader: "_Reader") -> FirstToken | None:
    flag = reader.take(1)
    if flag == b"\0":
        return None
    if flag != b"\1":
        raise InvalidRequest("ticket refused: the flag of the first token is neither 0 nor 1")
    token, cached_tokens, has_logprob = reader.unpack(_FIRST)
    logprob = None
    if has_logprob:
        drawn, value, num_top = reader.unpack(_LOGPROB)
        if num_top > MAX_TOP:
            raise InvalidRequest(f"ticket refused: {num_top} log probabilities, at most {MAX_TOP} are allowed")
        top = tuple((t, p) for t, p in (reader.unpack(_TOP) for _ in range(num_top)))
        logprob = TokenLogprob(drawn, value, top)
    return FirstToken(token, logprob, cached_tokens)


def _check(ticket: Ticket, id_bytes: int) -> None:
    """What no honest ticket breaks, whatever the request."""
    wrong = (
        not 0 < id_bytes <= MAX_ID_BYTES
        or len(ticket.layout_hash) != DIGEST_BYTES
        or len(ticket.digest) != DIGEST_BYTES
        or ticket.token_begin >= ticket.token_end
        or ticket.layer_begin >= ticket.layer_end
        or len(ticket.pages) != len(ticket.generations)
        or not 0 < len(ticket.pages) <= MAX_PAGES
    )
    if wrong:
        raise InvalidRequest(f"ticket of request {ticket.id}: ranges, hashes and pages do not fit together")


def _array(code: str, values: tuple[int, ...]) -> bytes:
    return array(code, values).tobytes()


class _Reader:
    """Takes fields off the front of a buffer and never reads past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, num_bytes: int) -> bytes:
        end = self._at + num_bytes
        if end > len(self._data):
            raise InvalidRequest(f"ticket refused: cut off at byte {len(self._data)}, {end} are needed")
        part = self._data[self._at : end]
        self._at = end
        return part

    def unpack(self, form: Struct) -> tuple:  # type: ignore[type-arg]
        return form.unpack(self.take(form.size))

    def array(self, code: str, count: int) -> tuple[int, ...]:
        values = array(code)
        values.frombytes(self.take(count * values.itemsize))
        return tuple(values)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise InvalidRequest(f"ticket refused: {len(self._data) - self._at} bytes too many")
