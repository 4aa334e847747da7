"""What a router shows a worker to be heard: a token that only holders of the cluster key can make.

It is the same in each call: without TLS in the cluster who can read the network can use it, too.
"""

import hmac
from collections.abc import Iterable

HEADER = "x-baton-session"


def session_metadata(cluster_key: bytes) -> tuple[tuple[str, str], ...]:
    """What goes with every call to a worker."""
    return ((HEADER, hmac.new(cluster_key, b"baton worker session", "sha256").hexdigest()),)


def knows(cluster_key: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether whoever sent `metadata` with a call knows the key."""
    ((_, expected),) = session_metadata(cluster_key)
    given = next((value for name, value in metadata if name == HEADER), "")
    return hmac.compare_digest(given.encode() if isinstance(given, str) else given, expected.encode())
