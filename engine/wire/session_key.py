"""How a router and a worker show each other that they know the cluster key, before either gives anything away.

    router                                      worker
    Describe: its challenge                ->
                                           <-   UNAUTHENTICATED: its own challenge, its answer to the router's
    Describe, then Session: its answer     ->   checks it each time

Who knows no key learns two random numbers. A worker's challenge is one for each start, so without TLS who can read the
network can use a router's answer until that worker ends; and who stands between the two, as with TLS only members can,
can hand everything on.
"""

import hmac
import secrets
from collections.abc import Iterable

from engine.core.errors import Unauthenticated

CHALLENGE, ANSWER = "x-baton-challenge", "x-baton-session"
_CHALLENGE_BYTES = 16
_MAX_CHARS = 64

Metadata = Iterable[tuple[str, str | bytes]]
Sent = tuple[tuple[str, str], ...]


class WorkerSide:
    """One start of a worker."""

    def __init__(self, cluster_key: bytes) -> None:
        self._key = cluster_key
        self._own = secrets.token_hex(_CHALLENGE_BYTES)

    def knows(self, metadata: Metadata) -> bool:
        """Whether whoever sent `metadata` with a call knows the key."""
        expected = _answer(self._key, "router", self._own)
        return hmac.compare_digest(_value(metadata, ANSWER).encode(), expected.encode())

    def greeting(self, metadata: Metadata) -> Sent:
        """What goes back with the refusal of who has not answered."""
        theirs = _value(metadata, CHALLENGE)
        return ((CHALLENGE, self._own), (ANSWER, _answer(self._key, "worker", self._own, theirs)))


class RouterSide:
    """One connection of a router."""

    def __init__(self, cluster_key: bytes) -> None:
        self._key = cluster_key
        self._own = secrets.token_hex(_CHALLENGE_BYTES)

    def hello(self) -> Sent:
        """What goes with the first call."""
        return ((CHALLENGE, self._own),)

    def reply(self, greeting: Metadata) -> Sent:
        """What goes with all others. Raises Unauthenticated when the worker does not know the key."""
        theirs = _value(greeting, CHALLENGE)
        expected = _answer(self._key, "worker", theirs, self._own)
        if not hmac.compare_digest(_value(greeting, ANSWER).encode(), expected.encode()):
            raise Unauthenticated("it and this router do not know the same cluster key")
        return ((ANSWER, _answer(self._key, "router", theirs)),)


def _answer(key: bytes, role: str, *challenges: str) -> str:
    return hmac.digest(key, "\0".join((f"baton {role} session", *challenges)).encode(), "sha256").hex()


def _value(metadata: Metadata, name: str) -> str:
    given = next((value for header, value in metadata if header == name), "")
    return given[:_MAX_CHARS] if isinstance(given, str) else ""
