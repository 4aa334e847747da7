"""Bytes of KV that follow from token, layer, K or V, and head: the same in every layout and on every rank."""

from collections.abc import Sequence
from hashlib import blake2b

from engine.core.types import KVLayout
from kv_transfer.transports.base import PagePool


def head_value(of: KVLayout, token: int, layer: int, plane: int, head: int) -> bytes:
    """Of one head (of the whole model) of one token; `plane` 0 is K."""
    num_bytes = of.head_dim * of.DTYPE_BYTES[of.dtype]
    return blake2b(f"{token} {layer} {plane} {head}".encode(), digest_size=num_bytes).digest()


def page_value(of: KVLayout, tokens: Sequence[int], layer: int, rank: int = 0) -> bytes:
    """One layer of a page that holds these tokens, at most a page of them; zeros behind them."""
    heads = of.num_kv_heads // of.tp_size
    planes = []
    for plane in range(2):
        rows = [head_value(of, token, layer, plane, rank * heads + head) for token in tokens for head in range(heads)]
        planes.append(b"".join(rows).ljust(of.page_bytes // of.num_layers // 2, bytes(1)))
    return b"".join(planes)


def write_tokens(pool: PagePool, pages: Sequence[int], tokens: Sequence[int]) -> None:
    """Put the KV of `tokens` into `pages`, in order: on each rank its heads."""
    of = pool.layout
    for index, page in enumerate(pages):
        held = tokens[index * of.page_size : (index + 1) * of.page_size]
        for rank in range(of.tp_size):
            for layer in range(of.num_layers):
                pool.write(page, layer, layer + 1, page_value(of, held, layer, rank), rank)


def page_holds(pool: PagePool, page: int, tokens: Sequence[int]) -> bool:
    """True if the page holds exactly these tokens on every rank, and zeros behind them."""
    of = pool.layout
    return all(
        bytes(pool.read(page, layer, layer + 1, rank)) == page_value(of, tokens, layer, rank)
        for rank in range(of.tp_size)
        for layer in range(of.num_layers)
    )
