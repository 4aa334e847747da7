from array import array

import pytest

from engine.core.digest import extend_digest, page_digests
from kv_transfer.plan import Coverage, Grid, PrefixDigests, missing_ranges, num_pages_for, page_runs, split_pairs


@pytest.mark.parametrize(("num_tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2)])
def test_num_pages_for(num_tokens: int, pages: int) -> None:
    assert num_pages_for(num_tokens, 16) == pages


def test_digests_exist_at_page_ends_and_at_the_end_of_the_prefix_only() -> None:
    tokens = array("i", range(10))
    at = PrefixDigests(b"root", tokens, 4).at
    full = page_digests(b"root", tokens, 4)
    assert [at(4), at(8)] == full
    assert at(10) == extend_digest(full[1], tokens[8:])
    assert [at(end) for end in (-4, 0, 1, 5, 9, 11, 12)] == [None] * 7


def test_a_prefix_shorter_than_a_page_has_a_digest() -> None:
    tokens = array("i", [1, 2])
    assert PrefixDigests(b"root", tokens, 4).at(2) == extend_digest(b"root", tokens)


@pytest.mark.parametrize(
    ("have", "span", "missing"),
    [
        (0b0000, (0, 4), [(0, 4)]),
        (0b1111, (0, 4), []),
        (0b0110, (0, 4), [(0, 1), (3, 4)]),
        (0b0001, (0, 4), [(1, 4)]),
        (0b0001, (2, 3), [(2, 3)]),
    ],
)
def test_missing_ranges(have: int, span: tuple[int, int], missing: list[tuple[int, int]]) -> None:
    assert missing_ranges(have, *span) == missing


def test_split_pairs_keeps_neighbours_together_and_reads_bounded() -> None:
    pairs = [(5, 0), (1, 1), (4, 2), (3, 3), (2, 4)]
    parts = list(split_pairs(pairs, part_bytes=100, max_bytes=250))
    assert parts == [[(1, 1), (2, 4)], [(3, 3), (4, 2)], [(5, 0)]]
    assert [len(part) for part in split_pairs(pairs, part_bytes=1000, max_bytes=250)] == [1] * 5


def test_page_runs() -> None:
    assert list(page_runs([])) == []
    assert list(page_runs([4, 5, 6, 9, 8, 8])) == [(4, 3), (9, 1), (8, 1), (8, 1)]


PAGE = Grid.of(4, 4)


def test_coverage_asks_for_nothing_twice_and_nothing_local() -> None:
    coverage = Coverage(PAGE, pages=(10, 11, 12), num_local=1, num_tokens=12, num_layers=4)
    assert coverage.claim(0, [(1, 7), (2, 7)], (0, 2)) == {(0, (0, 2)): [(2, 11)]}
    assert coverage.claim(0, [(1, 7), (2, 7)], (0, 2)) == {}
    assert coverage.claim(1, [(2, 7), (3, 7)], (0, 4)) == {(0, (2, 4)): [(2, 11)], (0, (0, 4)): [(3, 12)]}
    assert coverage.complete
    assert coverage.sources == [(2, 7), (3, 7)]


def test_coverage_is_complete_only_with_every_layer_of_every_page() -> None:
    coverage = Coverage(PAGE, pages=(10, 11), num_local=0, num_tokens=8, num_layers=2)
    coverage.claim(0, [(1, 1), (2, 1)], (0, 1))
    assert not coverage.complete
    coverage.claim(0, [(1, 1)], (1, 2))
    assert not coverage.complete
    coverage.claim(1, [(2, 1)], (1, 2))
    assert coverage.complete
    assert Coverage(PAGE, pages=(10,), num_local=1, num_tokens=4, num_layers=2).complete


def test_coverage_sees_contradictions() -> None:
    coverage = Coverage(PAGE, pages=(10, 11), num_local=0, num_tokens=8, num_layers=2)
    coverage.claim(0, [(1, 1), (2, 1)], (0, 1))
    assert not coverage.contradicts(0, [(1, 1), (2, 1)])
    assert coverage.contradicts(1, [(2, 2)])
    assert coverage.contradicts(0, [(3, 1)])


def test_larger_pages_there_fill_several_here_and_are_named_once() -> None:
    coverage = Coverage(Grid.of(4, 8), pages=(10, 11, 12), num_local=1, num_tokens=10, num_layers=1)
    wanted = coverage.claim(0, [(1, 7), (2, 7)], (0, 1))
    assert wanted == {(1, (0, 1)): [(1, 11)], (0, (0, 1)): [(2, 12)]}
    assert coverage.complete and coverage.sources == [(1, 7), (2, 7)]


def test_a_larger_page_there_that_is_all_here_is_not_named() -> None:
    coverage = Coverage(Grid.of(4, 8), pages=(10, 11, 12), num_local=2, num_tokens=10, num_layers=1)
    assert coverage.claim(0, [(1, 7), (2, 7)], (0, 1)) == {(0, (0, 1)): [(2, 12)]}
    assert coverage.sources == [(2, 7)]


def test_larger_pages_here_are_filled_from_several_there() -> None:
    coverage = Coverage(Grid.of(8, 4), pages=(10, 11), num_local=0, num_tokens=10, num_layers=1)
    assert coverage.claim(0, [(1, 7), (2, 7)], (0, 1)) == {(0, (0, 1)): [(1, 10)], (1, (0, 1)): [(2, 10)]}
    assert not coverage.complete
    assert coverage.claim(2, [(3, 7)], (0, 1)) == {(0, (0, 1)): [(3, 11)]}
    assert coverage.complete
