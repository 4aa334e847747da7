"""The names of a prompt's prefixes, computed once for each page size that workers use."""

import hmac
from array import array
from functools import lru_cache

from engine.core.digest import page_digests, root_digest


@lru_cache(maxsize=4096)
def cache_salt(tenant: str, key: bytes) -> bytes:
    """The salt that keeps one tenant's prefixes to itself: 16 bytes that only holders of `key` can compute.

    An HMAC over length-prefixed fields: what it is for, then the tenant. Clients have no part in it.
    """
    fields = (b"baton cache salt", tenant.encode())
    message = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    return hmac.digest(key, message, "sha256")[:16]


class PromptPages:
    """Page digests of one token sequence under one salt and model; hashing is what routing a long prompt costs."""

    __slots__ = ("_by_page_size", "_root", "_tokens", "model_hash")

    def __init__(self, tokens: "array[int]", salt: bytes, model_hash: str) -> None:
        """`tokens` must not change afterwards."""
        self._tokens = tokens
        self.model_hash = model_hash
        self._root = root_digest(salt, model_hash)
        self._by_page_size: dict[int, list[bytes]] = {}

    def digests(self, page_size: int) -> list[bytes]:
        """Digests of the full pages before the last token: that one is always computed, so a cache cannot hold it."""
        known = self._by_page_size.get(page_size)
        if known is None:
            usable = (len(self._tokens) - 1) // page_size
            known = page_digests(self._root, self._tokens, page_size, usable)
            self._by_page_size[page_size] = known
        return known
