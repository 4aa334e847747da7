"""Pools that hold head shards and pages of one size are cut into pools of another, and every byte is compared."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.types import KVLayout
from kv_transfer.host_pool import HostPool
from kv_transfer.reslice import Block, Part, blocks, gather, pieces, reslice_reasons, scatter


def layout(tp_size: int, page_size: int, num_kv_heads: int = 8, num_layers: int = 2) -> KVLayout:
    return KVLayout("m", num_layers, num_kv_heads, head_dim=4, page_size=page_size, dtype="bfloat16", tp_size=tp_size)


def value(layer: int, plane: int, token: int, head: int) -> bytes:
    """The bytes of one head of one token: every one of the whole model's is different."""
    return bytes((layer * 2 + plane, token, head, 0xA5, layer, head ^ token, plane, 1))


def pools(of: KVLayout, num_tokens: int) -> list[HostPool]:
    """One pool a rank, with `num_tokens` tokens in pages from 0 on."""
    heads = of.num_kv_heads // of.tp_size
    made = []
    for rank in range(of.tp_size):
        pool = HostPool(of, num_tokens // of.page_size)
        for page in range(pool.num_pages):
            for layer in range(of.num_layers):
                data = b"".join(
                    value(layer, plane, page * of.page_size + position, rank * heads + head)
                    for plane in range(2)
                    for position in range(of.page_size)
                    for head in range(heads)
                )
                pool.write(page, layer, layer + 1, data)
        made.append(pool)
    return made


def copy(block: Block, src: memoryview, dst: memoryview) -> int:
    for i in range(block.count):
        s, d = block.src_offset + i * block.src_stride, block.dst_offset + i * block.dst_stride
        dst[d : d + block.num_bytes] = src[s : s + block.num_bytes]
    return block.count * block.num_bytes


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([2, 4, 8]),
    st.data(),
)
def test_every_byte_goes_where_it_belongs_and_once(
    tp_here: int, tp_there: int, size_here: int, size_there: int, data: st.DataObject
) -> None:
    mine, theirs = layout(tp_here, size_here), layout(tp_there, size_there)
    assert reslice_reasons(mine, theirs) == []
    tokens = max(size_here, size_there) * 2
    right, source = pools(mine, tokens), pools(theirs, tokens)
    begin = data.draw(st.integers(0, 1))
    end = data.draw(st.integers(begin + 1, 2))
    per_group_here, per_group_there = max(1, size_there // size_here), max(1, size_here // size_there)
    for rank in range(tp_here):
        pool = HostPool(mine, tokens // size_here)
        copied = 0
        for group in range(2):
            for piece in pieces(mine, rank, theirs):
                src = source[piece.src_rank].read(group * per_group_there + piece.src_page, 0, 2)
                dst = pool.read(group * per_group_here + piece.dst_page, 0, 2)
                copied += sum(copy(block, src, dst) for block in blocks(piece.cut, mine, theirs, (begin, end)))
        assert copied == (end - begin) * pool.num_pages * mine.page_bytes // 2, "a byte was copied twice or never"
        for page in range(pool.num_pages):
            for layer in range(2):
                expected = bytes(right[rank].read(page, layer, layer + 1))
                if not begin <= layer < end:
                    expected = bytes(len(expected))
                assert bytes(pool.read(page, layer, layer + 1)) == expected


def test_equal_workers_move_whole_planes() -> None:
    same = layout(2, 8)
    (piece,) = pieces(same, 1, same)
    assert (piece.src_rank, piece.cut.src, piece.cut.dst) == (1, Part(0, 8, 0, 4), Part(0, 8, 0, 4))
    plane = same.page_bytes // 4
    assert list(blocks(piece.cut, same, same, (0, 2))) == [
        Block(i * plane, plane, i * plane, plane, plane, 1) for i in range(4)
    ]


def test_other_page_sizes_alone_keep_runs_long() -> None:
    mine, theirs = layout(1, 16), layout(1, 4)
    assert [(p.src_page, p.dst_page, p.cut.dst.position) for p in pieces(mine, 0, theirs)] == [
        (0, 0, 0),
        (1, 0, 4),
        (2, 0, 8),
        (3, 0, 12),
    ]
    assert all(block.count == 1 for p in pieces(mine, 0, theirs) for block in blocks(p.cut, mine, theirs, (0, 2)))


@pytest.mark.parametrize("part", [Part(0, 8, 0, 4), Part(2, 4, 0, 4), Part(0, 8, 1, 2), Part(3, 2, 3, 1)])
def test_what_was_gathered_is_scattered_back_and_nothing_else(part: Part) -> None:
    of = layout(2, 8)
    (pool, _), empty = pools(of, 8), HostPool(of, 1)
    assert part.fits(of)
    data = gather(pool.read(0, 0, 2), of, part, 2)
    assert len(data) == part.num_bytes(of, 2) == 2 * 2 * part.num_positions * part.num_heads * 8
    heads = range(part.head, part.head + part.num_heads)
    first = [value(0, 0, part.position, head) for head in heads]
    assert bytes(data).startswith(b"".join(first))
    scatter(memoryview(data), empty.read(0, 0, 2), of, part, 2)
    assert gather(empty.read(0, 0, 2), of, part, 2) == data
    assert len(bytes(empty.read(0, 0, 2)).replace(bytes(8), b"")) == len(data)


@pytest.mark.parametrize(
    "part", [Part(0, 9, 0, 4), Part(8, 1, 0, 4), Part(0, 0, 0, 4), Part(0, 8, 0, 5), Part(-1, 1, 0, 1)]
)
def test_what_a_page_does_not_have_does_not_fit(part: Part) -> None:
    assert not part.fits(layout(2, 8))


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        (layout(1, 16), layout(1, 24), "page sizes of which neither is a multiple of the other: 16 tokens here, 24"),
        (layout(2, 16, num_kv_heads=12), layout(3, 16, num_kv_heads=12), "degrees of which neither .* 2 here, 3 there"),
        (layout(3, 16), layout(1, 16), "8 KV heads do not divide among 3"),
    ],
)
def test_what_cannot_be_cut_has_a_reason_in_words(mine: KVLayout, theirs: KVLayout, words: str) -> None:
    (reason,) = reslice_reasons(mine, theirs)
    assert re.search(words, reason)
