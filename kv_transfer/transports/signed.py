"""Requests for pages that only a member of the cluster can make, and that are served once. No clock, no state on disk.

A request names the reader that made it (16 random bytes, new at each start) and has a number that this reader uses
once. The source remembers, for each reader, the newest number and which of the WINDOW before it came: requests that
overtake each other pass, recorded ones do not.
"""

import hmac
import os
from itertools import count

from google.protobuf.message import Message

from engine.wire import kv_pb2

READER_BYTES = 16
WINDOW = 4096
"""Far more than the reads that one reader has in flight."""


class Signer:
    """A reader's side."""

    def __init__(self, key: bytes) -> None:
        """`key` is the cluster key."""
        self._key, self._reader, self._numbers = key, os.urandom(READER_BYTES), count(1)

    def sign(self, method: str, source: str, message: Message) -> kv_pb2.SignedRequest:
        """The request that the worker named `source` (peer_key) will believe, once."""
        body, number = message.SerializeToString(), next(self._numbers)
        mac = _mac(method, source, self._reader, number, body, self._key)
        return kv_pb2.SignedRequest(body=body, mac=mac, reader=self._reader, number=number)


class Judge:
    """The source's side."""

    def __init__(self, name: str, key: bytes) -> None:
        """`name` is this worker's own peer_key: requests that were signed for another incarnation are refused."""
        self._name, self._key = name, key
        self._seen: dict[bytes, tuple[int, int]] = {}
        """By reader: the newest number, and a bit for each before it that came, bit 0 its own. A reader is known only
        after an authentic request, so there are as many as decode workers have started."""

    def refusal(self, method: str, request: kv_pb2.SignedRequest) -> str | None:
        """Why not to serve it; None counts as served."""
        mac = _mac(method, self._name, request.reader, request.number, request.body, self._key)
        if len(request.reader) != READER_BYTES or not hmac.compare_digest(request.mac, mac):
            return "not signed for this incarnation with this cluster's key: the worker restarted, or the keys differ"
        newest, mask = self._seen.get(request.reader, (0, 0))
        ahead = request.number - newest
        if ahead > 0:
            kept = mask << ahead if ahead < WINDOW else 0
            self._seen[request.reader] = (request.number, (kept | 1) & ((1 << WINDOW) - 1))
            return None
        if -ahead >= WINDOW or mask >> -ahead & 1:
            return "this request was served before"
        self._seen[request.reader] = (newest, mask | 1 << -ahead)
        return None


def _mac(method: str, source: str, reader: bytes, number: int, body: bytes, key: bytes) -> bytes:
    head = f"baton {method}\0{source}\0".encode() + reader + number.to_bytes(8, "little")
    return hmac.digest(key, head + body, "sha256")
