"""May two workers hand pages to each other? Says why not in plain words. Pure."""

from functools import lru_cache
from hashlib import blake2b

from engine.core.digest import DIGEST_BYTES
from engine.core.errors import Incompatible
from engine.core.types import KVLayout
from kv_transfer.reslice import reslice_reasons


@lru_cache(maxsize=64)
def layout_hash(layout: KVLayout) -> bytes:
    """The name of a layout on a ticket: blake2b-128 over every field, length-prefixed."""
    fields = (
        layout.model_hash,
        layout.num_layers,
        layout.num_kv_heads,
        layout.head_dim,
        layout.page_size,
        layout.dtype,
        layout.tp_size,
        layout.order,
        layout.version,
    )
    parts = [str(field).encode() for field in fields]
    return blake2b(b"".join(len(p).to_bytes(4, "little") + p for p in parts), digest_size=DIGEST_BYTES).digest()


_SAME = (
    ("version", "versions of the page layout"),
    ("model_hash", "models"),
    ("num_layers", "numbers of layers"),
    ("num_kv_heads", "numbers of KV heads"),
    ("head_dim", "head dimensions"),
    ("dtype", "types of KV values"),
    ("order", "orders of the bytes in a page"),
)


def check_layouts(mine: KVLayout, theirs: KVLayout) -> None:
    """Pass if pages of `theirs` can be read into pages of `mine`.

    Page sizes and tensor-parallel degrees may differ by a whole multiple: kv_transfer.reslice.routes says what moves.

    Raises:
        Incompatible: with every reason, both sides named.
    """
    reasons = []
    for field, words in _SAME:
        here, there = getattr(mine, field), getattr(theirs, field)
        if here != there:
            reasons.append(f"different {words}: {here} here, {there} there")
    reasons += reslice_reasons(mine, theirs)
    if reasons:
        raise Incompatible("; ".join(reasons))
