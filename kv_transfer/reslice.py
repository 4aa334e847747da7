"""Where the bytes of unequal workers lie: other tensor-parallel degrees, other page sizes. Pure.

A page of one rank is [layer][K, V][position][head of this rank][dim]. A run of positions is contiguous if both ranks
hold the same heads; otherwise every position is a run of its own:

    source, 2 ranks   position 0: [ h0 h1 ]  position 1: [ h0 h1 ]  ...      and h2 h3 on the other rank
    reader, 4 ranks   position 0: [ h0 ]     position 1: [ h0 ]     ...      rank 0 takes half of each position

Pages fit into each other if one size is a whole multiple of the other: they are compared over the larger one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.core.errors import Incompatible
from engine.core.types import KVLayout


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions of one source page, of one rank, that fill positions of one page here, for the heads that both have.

    Pages are counted from the larger page's first one; heads within their rank, positions within their page.
    """

    src_rank: int
    src_page: int
    src_position: int
    src_head: int
    dst_page: int
    dst_position: int
    dst_head: int
    num_positions: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class Block:
    """`count` runs of `num_bytes`, from one source page into one page here; offsets and strides in bytes."""

    src_offset: int
    src_stride: int
    dst_offset: int
    dst_stride: int
    num_bytes: int
    count: int


def check_reslice(mine: KVLayout, theirs: KVLayout) -> None:
    """Pass if pages of `theirs` can be cut into pages of `mine`, both agreeing in everything else.

    Raises:
        Incompatible: page sizes or degrees are no whole multiples, or heads do not divide.
    """
    reasons = []
    if mine.page_size % theirs.page_size and theirs.page_size % mine.page_size:
        reasons.append(f"page sizes {mine.page_size} and {theirs.page_size} are no whole multiples")
    for layout in (mine, theirs):
        if layout.num_kv_heads % layout.tp_size:
            reasons.append(f"{layout.num_kv_heads} KV heads do not divide among {layout.tp_size} ranks")
    if mine.tp_size % theirs.tp_size and theirs.tp_size % mine.tp_size:
        reasons.append(f"tensor-parallel degrees {mine.tp_size} and {theirs.tp_size} are no whole multiples")
    if reasons:
        raise Incompatible("; ".join(reasons))


def pieces(mine: KVLayout, my_rank: int, theirs: KVLayout) -> Iterator[Piece]:
    """What rank `my_rank` of `mine` takes from the ranks of `theirs` for one larger page. `check_reslice` passed."""
    heads_here, heads_there = mine.num_kv_heads // mine.tp_size, theirs.num_kv_heads // theirs.tp_size
    tokens, part = max(mine.page_size, theirs.page_size), min(mine.page_size, theirs.page_size)
    first, end = my_rank * heads_here, (my_rank + 1) * heads_here
    for src_rank in range(first // heads_there, -(-end // heads_there)):
        begin_head = max(first, src_rank * heads_there)
        num_heads = min(end, (src_rank + 1) * heads_there) - begin_head
        for token in range(0, tokens, part):
            yield Piece(
                src_rank=src_rank,
                src_page=token // theirs.page_size,
                src_position=token % theirs.page_size,
                src_head=begin_head - src_rank * heads_there,
                dst_page=token // mine.page_size,
                dst_position=token % mine.page_size,
                dst_head=begin_head - first,
                num_positions=part,
                num_heads=num_heads,
            )


def blocks(piece: Piece, mine: KVLayout, theirs: KVLayout, layers: tuple[int, int]) -> Iterator[Block]:
    """The bytes of one piece, for those layers: one block for each layer's K and V."""
    head_bytes = mine.head_dim * mine.DTYPE_BYTES[mine.dtype]
    src_stride = theirs.num_kv_heads // theirs.tp_size * head_bytes
    dst_stride = mine.num_kv_heads // mine.tp_size * head_bytes
    num_bytes, count = piece.num_heads * head_bytes, piece.num_positions
    whole = src_stride == dst_stride == num_bytes
    for plane in range(2 * layers[0], 2 * layers[1]):
        src = (plane * theirs.page_size + piece.src_position) * src_stride + piece.src_head * head_bytes
        dst = (plane * mine.page_size + piece.dst_position) * dst_stride + piece.dst_head * head_bytes
        if whole:
            yield Block(src, num_bytes * count, dst, num_bytes * count, num_bytes * count, 1)
        else:
            yield Block(src, src_stride, dst, dst_stride, num_bytes, count)
