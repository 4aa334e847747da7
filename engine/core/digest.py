"""Chained page digests: the name of a prefix, the same on every worker and router.

digest(page i) = blake2b-128(digest(page i-1) | tokens of page i as little-endian int32)
digest(root)   = blake2b-128(length-prefixed salt | length-prefixed model hash)

So a digest names all tokens up to the end of its page, inside one tenant salt and one model.

Where a wrong answer costs a detour and no more (prefix events, a router's index), a page goes by its key: the low 60
bits of its digest, which fit a signed 64-bit integer and a small Python one. Whoever moves or reads pages compares
digests. The keys of all pages of a cache, XORed, name its content whatever the order it came in.
"""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from struct import iter_unpack

DIGEST_BYTES = 16
KEY_MASK = (1 << 60) - 1
_NEW_HASHER = blake2b(digest_size=DIGEST_BYTES).copy
"""A copy costs less than a new one with its parameters: a sixth of what a page of 128 tokens takes."""


def root_digest(cache_salt: bytes, model_hash: str) -> bytes:
    """The digest of the empty prefix of one tenant and model. Fields are length-prefixed so none runs into the next."""
    model = model_hash.encode()
    head = len(cache_salt).to_bytes(4, "little") + cache_salt + len(model).to_bytes(4, "little") + model
    return blake2b(head, digest_size=DIGEST_BYTES).digest()


def extend_digest(parent: bytes, tokens: "array[int] | memoryview") -> bytes:
    """The digest of a prefix extended by `tokens` (int32, usually one page; fewer for a last partial page)."""
    return blake2b(parent + bytes(tokens), digest_size=DIGEST_BYTES).digest()


def page_digests(root: bytes, tokens: "array[int]", page_size: int, num_pages: int | None = None) -> list[bytes]:
    """Digests of the full pages of `tokens` (int32 buffer), at most `num_pages` of them, in chain order."""
    full = len(tokens) // page_size
    count = full if num_pages is None else min(full, num_pages)
    width = page_size * tokens.itemsize
    pages = memoryview(tokens).cast("B")[: count * width]
    digests, parent = [], root
    for (page,) in iter_unpack(f"{width}s", pages):
        hasher = _NEW_HASHER()
        hasher.update(parent + page)
        parent = hasher.digest()
        digests.append(parent)
    return digests


def page_key(digest: bytes) -> int:
    """The short name of a page: the low 60 bits of its digest, little-endian."""
    return int.from_bytes(digest[:8], "little") & KEY_MASK


def page_keys(digests: Iterable[bytes]) -> list[int]:
    """`page_key` of each."""
    low = int.from_bytes
    return [low(digest[:8], "little") & KEY_MASK for digest in digests]
