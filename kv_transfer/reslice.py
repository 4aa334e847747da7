"""Where the bytes of unequal workers lie: other tensor-parallel degrees, other page sizes. Pure.

A page of one rank is [layer][K, V][position][head of this rank][dim]. A run of positions is contiguous if both ranks
hold the same heads; otherwise every position is a run of its own:

    source, 2 ranks   position 0: [ h0 h1 ]  position 1: [ h0 h1 ]  ...      and h2 h3 on the other rank
    reader, 4 ranks   position 0: [ h0 ]     position 1: [ h0 ]     ...      rank 0 takes half of each position

Pages fit into each other if one size is a whole multiple of the other: they are compared over the larger one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.core.types import KVLayout


@dataclass(frozen=True, slots=True)
class Part:
    """Some positions of a page, and of those some heads, both counted within the page and its rank."""

    position: int
    num_positions: int
    head: int
    num_heads: int

    def fits(self, layout: KVLayout) -> bool:
        """True if a page of `layout` has it."""
        heads = layout.num_kv_heads // layout.tp_size
        return (
            0 <= self.position < self.position + self.num_positions <= layout.page_size
            and 0 <= self.head < self.head + self.num_heads <= heads
        )

    def num_bytes(self, layout: KVLayout, num_layers: int) -> int:
        """Of that part of so many layers of a page."""
        head_bytes = layout.head_dim * layout.DTYPE_BYTES[layout.dtype]
        return 2 * num_layers * self.num_positions * self.num_heads * head_bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a page there that fills a part of a page here; both have the same extent."""

    src: Part
    dst: Part


@dataclass(frozen=True, slots=True)
class Piece:
    """A cut of one source page, of one rank, and its page here; pages are counted from the larger page's first one."""

    src_rank: int
    src_page: int
    dst_page: int
    cut: Cut


@dataclass(frozen=True, slots=True)
class Route:
    """What of a page here comes from one rank there."""

    src_rank: int
    dst_rank: int
    cut: Cut | None
    """None between equal layouts: rank r takes whole pages from rank r."""


@dataclass(frozen=True, slots=True)
class Block:
    """`count` runs of `num_bytes`, from one source page into one page here; offsets and strides in bytes."""

    src_offset: int
    src_stride: int
    dst_offset: int
    dst_stride: int
    num_bytes: int
    count: int


def reslice_reasons(mine: KVLayout, theirs: KVLayout) -> list[str]:
    """Why pages of `theirs` cannot be cut into pages of `mine`, which agree in everything else; empty if they can."""
    reasons = []
    if mine.page_size % theirs.page_size and theirs.page_size % mine.page_size:
        reasons.append(
            f"page sizes of which neither is a multiple of the other: {mine.page_size} tokens here, "
            f"{theirs.page_size} there"
        )
    for layout in (mine, theirs):
        if layout.num_kv_heads % layout.tp_size:
            reasons.append(f"{layout.num_kv_heads} KV heads do not divide among {layout.tp_size} ranks")
    if mine.tp_size % theirs.tp_size and theirs.tp_size % mine.tp_size:
        reasons.append(
            f"tensor-parallel degrees of which neither is a multiple of the other: {mine.tp_size} here, "
            f"{theirs.tp_size} there"
        )
    return reasons


def pieces(mine: KVLayout, my_rank: int, theirs: KVLayout) -> Iterator[Piece]:
    """What rank `my_rank` of `mine` takes from the ranks of `theirs` for one larger page, if there are no reasons."""
    heads_here, heads_there = mine.num_kv_heads // mine.tp_size, theirs.num_kv_heads // theirs.tp_size
    tokens, step = max(mine.page_size, theirs.page_size), min(mine.page_size, theirs.page_size)
    first, end = my_rank * heads_here, (my_rank + 1) * heads_here
    for src_rank in range(first // heads_there, -(-end // heads_there)):
        begin_head = max(first, src_rank * heads_there)
        num_heads = min(end, (src_rank + 1) * heads_there) - begin_head
        for token in range(0, tokens, step):
            src = Part(token % theirs.page_size, step, begin_head - src_rank * heads_there, num_heads)
            dst = Part(token % mine.page_size, step, begin_head - first, num_heads)
            yield Piece(src_rank, token // theirs.page_size, token // mine.page_size, Cut(src, dst))


@lru_cache(maxsize=64)
def routes(mine: KVLayout, theirs: KVLayout) -> tuple[tuple[Route, ...], ...]:
    """What moves for one larger page, if there are no reasons: by part of it, which is a page of the smaller size."""
    if (mine.page_size, mine.tp_size) == (theirs.page_size, theirs.tp_size):
        return (tuple(Route(rank, rank, None) for rank in range(mine.tp_size)),)
    parts: list[list[Route]] = [[] for _ in range(max(mine.page_size, theirs.page_size) // _part_size(mine, theirs))]
    for rank in range(mine.tp_size):
        for piece in pieces(mine, rank, theirs):
            token = piece.src_page * theirs.page_size + piece.cut.src.position
            parts[token // _part_size(mine, theirs)].append(Route(piece.src_rank, rank, piece.cut))
    return tuple(map(tuple, parts))


def _part_size(mine: KVLayout, theirs: KVLayout) -> int:
    return min(mine.page_size, theirs.page_size)


def num_runs(cut: Cut, mine: KVLayout, theirs: KVLayout) -> int:
    """Contiguous runs of bytes that one page's cut has, all layers."""
    return sum(block.count for block in blocks(cut, mine, theirs, (0, mine.num_layers)))


def blocks(cut: Cut, mine: KVLayout, theirs: KVLayout, layers: tuple[int, int]) -> Iterator[Block]:
    """The bytes of one cut, for those layers: one block for each layer's K and V."""
    head_bytes = mine.head_dim * mine.DTYPE_BYTES[mine.dtype]
    src_stride = theirs.num_kv_heads // theirs.tp_size * head_bytes
    dst_stride = mine.num_kv_heads // mine.tp_size * head_bytes
    num_bytes, count = cut.src.num_heads * head_bytes, cut.src.num_positions
    whole = src_stride == dst_stride == num_bytes
    for plane in range(2 * layers[0], 2 * layers[1]):
        src = (plane * theirs.page_size + cut.src.position) * src_stride + cut.src.head * head_bytes
        dst = (plane * mine.page_size + cut.dst.position) * dst_stride + cut.dst.head * head_bytes
        if whole:
            yield Block(src, num_bytes * count, dst, num_bytes * count, num_bytes * count, 1)
        else:
            yield Block(src, src_stride, dst, dst_stride, num_bytes, count)


def gather(page: memoryview, layout: KVLayout, part: Part, num_layers: int) -> bytearray:
    """`part` of each of the `num_layers` layers that `page` holds, densely: itself a page of a smaller layout."""
    data = bytearray(part.num_bytes(layout, num_layers))
    _copy(_gathering(layout, part, num_layers), page, memoryview(data))
    return data


def scatter(data: memoryview, page: memoryview, layout: KVLayout, part: Part, num_layers: int) -> None:
    """Put what `gather` gave into `part` of the `num_layers` layers that `page` holds."""
    _copy(_scattering(layout, part, num_layers), data, page)


@lru_cache(maxsize=256)
def _gathering(layout: KVLayout, part: Part, num_layers: int) -> tuple[Block, ...]:
    small, whole = _dense(layout, part)
    return tuple(blocks(Cut(part, whole), small, layout, (0, num_layers)))


@lru_cache(maxsize=256)
def _scattering(layout: KVLayout, part: Part, num_layers: int) -> tuple[Block, ...]:
    small, whole = _dense(layout, part)
    return tuple(blocks(Cut(whole, part), layout, small, (0, num_layers)))


def _dense(layout: KVLayout, part: Part) -> tuple[KVLayout, Part]:
    """The layout of a page that is nothing but `part`, and that part of it: all."""
    small = replace(layout, page_size=part.num_positions, num_kv_heads=part.num_heads, tp_size=1)
    return small, Part(0, part.num_positions, 0, part.num_heads)


def _copy(of: Iterable[Block], src: memoryview, dst: memoryview) -> None:
    for block in of:
        s, d = block.src_offset, block.dst_offset
        for _ in range(block.count):
            dst[d : d + block.num_bytes] = src[s : s + block.num_bytes]
            s, d = s + block.src_stride, d + block.dst_stride
