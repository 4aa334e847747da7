"""The host-side plan of a step on CPU: which tokens go where, which pages decode rows read together.

The pages of a row are scattered over the pool, so decode rows are gathered into a scratch buffer, in groups. Scratch
that fits the second-level cache is read back at cache speed: measured 1.5x faster on 16 rows of 512 tokens than
gathering all at once. A row longer than the scratch is cut into pieces; piece 0 of every row makes wave 0, and so on,
so a row appears at most once in a wave, and the waves merge by their log-sum-exp.

Shape suffixes: b rows of a group, C gathered tokens of a row of a group; see engine.attention.base for the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch

Index = slice | Tensor
"""Selects rows: neighbours as a slice, which copies nothing, others as int64."""


def index_of(rows: list[int]) -> Index:
    """The cheapest index that selects `rows`."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)


@dataclass(slots=True)
class ExtendRun:
    """Neighbouring rows with equally many new tokens: T in [first, first + num_rows * num_new).

    Only rows without cached tokens share a run: one kernel call, and one meeting of the threads, for all of them.
    """

    first: int
    start: int
    num_new: int
    pages_P: Tensor
    """int64, the first row's pages in order."""
    num_rows: int = 1

    @property
    def tokens(self) -> slice:
        """Where in T the run's new tokens are."""
        return slice(self.first, self.first + self.num_rows * self.num_new)


class CPUStep:
    """One planned step. What depends on a sliding window is planned at the first layer that has that window."""

    def __init__(self, batch: AttentionBatch, scratch_2NSKE: Tensor, narrowest_window: int) -> None:
        """`scratch_2NSKE`: where keys and values of the same layout as the pool's pages can be gathered."""
        assert int(batch.slots_T.min()) >= 0, "padding rows belong to graphs, which the CPU path has not"
        page_size = scratch_2NSKE.shape[2]
        self.slots_T = batch.slots_T
        self.page_T, self.position_T = batch.slots_T // page_size, batch.slots_T % page_size
        firsts = [0, *accumulate(batch.num_new)]
        decode = [row for row, num_new in enumerate(batch.num_new) if num_new == 1]
        self.decode_T = index_of([firsts[row] for row in decode]) if decode else None
        """Where in T the decode rows are."""
        self.extends = _runs(batch, firsts, narrowest_window)
        self._decode_lens = [batch.starts[row] + 1 for row in decode]
        self._decode_pages_RP = batch.page_table_BP[decode]
        self._scratch_2NSKE = scratch_2NSKE
        self._waves: dict[int | None, list[list[Group]]] = {}

    def waves(self, window: int | None) -> "list[list[Group]]":
        """Waves of groups that read what each decode row sees through `window`."""
        if window not in self._waves:
            ranges = [(max(0, length - window) if window else 0, length) for length in self._decode_lens]
            self._waves[window] = plan_waves(ranges, self._decode_pages_RP, self._scratch_2NSKE)
        return self._waves[window]


def _runs(batch: AttentionBatch, firsts: list[int], narrowest_window: int) -> list[ExtendRun]:
    """The rows with several new tokens. Rows that a sliding window cuts into stay alone."""
    runs: list[ExtendRun] = []
    for row, (start, num_new) in enumerate(zip(batch.starts, batch.num_new, strict=True)):
        if num_new == 1:
            continue
        last = runs[-1] if runs else None
        alike = last is not None and start == last.start == 0 and num_new == last.num_new <= narrowest_window
        if last is not None and alike and last.tokens.stop == firsts[row]:
            last.num_rows += 1
        else:
            runs.append(ExtendRun(firsts[row], start, num_new, batch.page_table_BP[row].long()))
    return runs


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [begin, end) of a run of pages of one row, counted from the run's first page."""

    row: int
    first_page: int
    num_pages: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that are gathered and attended together, each padded to as many pages as the longest.

    All views of the scratch are made here, once a step and not once a layer.
    """

    rows_b: Index
    """Which of the rows that were planned."""
    pages: Tensor
    """int64, b * pages of the longest piece."""
    gathered_2NSKE: tuple[Tensor, Tensor]
    """Scratch to gather the keys and values of `pages` into."""
    seen_2bKCE: tuple[Tensor, Tensor]
    """The tokens of it that any of the pieces sees."""
    mask_b11C: Tensor | None
    """Added to the scores; None when all pieces see all of it."""
    unseen: Tensor | None
    """Flat indices of gathered tokens that their row does not see. Whatever lies there, NaN included, is blanked."""

    def blank_unseen(self) -> None:
        """A masked score weighs nothing, but NaN times nothing is NaN."""
        if self.unseen is not None:
            for gathered_NSKE in self.gathered_2NSKE:
                gathered_NSKE.flatten(0, 1).index_fill_(0, self.unseen, 0)


def split_row(row: int, begin: int, end: int, page_size: int, max_pages: int) -> list[Piece]:
    """Cut tokens [begin, end) of a row into pieces of at most `max_pages` pages."""
    first, last = begin // page_size, math.ceil(end / page_size)
    pieces = []
    for page in range(first, last, max_pages):
        num_pages = min(max_pages, last - page)
        origin = page * page_size
        piece_end = min(end - origin, num_pages * page_size)
        pieces.append(Piece(row, page, num_pages, max(begin - origin, 0), piece_end))
    return pieces


def plan_waves(ranges: Sequence[tuple[int, int]], page_table_BP: Tensor, scratch_2NSKE: Tensor) -> list[list[Group]]:
    """Waves of groups that together read tokens [begin, end) of each row, as many at a time as the scratch holds.

    `ranges` says what each row of `page_table_BP` sees; never empty.
    """
    max_pages, page_size = scratch_2NSKE.shape[1:3]
    by_row = [split_row(row, begin, end, page_size, max_pages) for row, (begin, end) in enumerate(ranges)]
    return [_groups([piece for piece in wave if piece], page_table_BP, scratch_2NSKE) for wave in zip_longest(*by_row)]


def _groups(pieces: list[Piece], page_table_BP: Tensor, scratch_2NSKE: Tensor) -> list[Group]:
    pieces.sort(key=lambda piece: (-piece.num_pages, -piece.end))
    groups, first = [], 0
    while first < len(pieces):
        count = scratch_2NSKE.shape[1] // pieces[first].num_pages
        groups.append(_group(pieces[first : first + count], page_table_BP, scratch_2NSKE))
        first += count
    return groups


def _group(pieces: list[Piece], page_table_BP: Tensor, scratch_2NSKE: Tensor) -> Group:
    num_pages, page_size = pieces[0].num_pages, scratch_2NSKE.shape[2]
    rows = [piece.row for piece in pieces]
    first_b = torch.tensor([piece.first_page for piece in pieces])
    columns = (first_b[:, None] + torch.arange(num_pages)).clamp_(max=page_table_BP.shape[1] - 1)
    pages = page_table_BP[torch.tensor(rows)[:, None], columns].flatten().long()
    begin, end = min(piece.begin for piece in pieces), max(piece.end for piece in pieces)
    gathered_2NSKE = scratch_2NSKE[:, : len(pages)]
    by_row_2bCKE = gathered_2NSKE.view(2, len(rows), num_pages * page_size, *scratch_2NSKE.shape[3:])
    seen_2bKCE = by_row_2bCKE[:, :, begin:end].transpose(2, 3)
    mask_b11C = unseen = None
    if any(piece.begin != begin or piece.end != end for piece in pieces):
        token_C = torch.arange(num_pages * page_size)
        begin_b, end_b = torch.tensor([(piece.begin, piece.end) for piece in pieces]).T
        unseen_bC = (token_C < begin_b[:, None]) | (token_C >= end_b[:, None])
        unseen = unseen_bC.flatten().nonzero().flatten()
        hidden_b11C = unseen_bC[:, None, None, begin:end]
        mask_b11C = scratch_2NSKE.new_zeros(hidden_b11C.shape).masked_fill_(hidden_b11C, -math.inf)
    gathered, seen = (gathered_2NSKE[0], gathered_2NSKE[1]), (seen_2bKCE[0], seen_2bKCE[1])
    return Group(index_of(rows), pages, gathered, seen, mask_b11C, unseen)
