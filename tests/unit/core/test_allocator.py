from array import array

import pytest

from engine.core.allocator import PageAllocator


def test_every_page_is_handed_out_once() -> None:
    allocator = PageAllocator(5)
    first, second = allocator.allocate(2), allocator.allocate(3)
    assert first is not None and second is not None
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert allocator.num_free == 0


def test_out_of_pages_is_a_result_and_changes_nothing() -> None:
    allocator = PageAllocator(3)
    assert allocator.allocate(4) is None
    assert allocator.num_free == 3
    assert list(allocator.generations) == [0, 0, 0]
    assert allocator.allocate(0) == []


def test_the_generation_changes_when_a_page_gets_an_owner_and_not_when_it_loses_one() -> None:
    allocator = PageAllocator(1)
    for generation in (1, 2, 3):
        pages = allocator.allocate(1)
        assert pages == [0] and allocator.generations[0] == generation
        allocator.free(pages)
        assert allocator.generations[0] == generation


def test_generations_live_in_the_memory_that_was_given() -> None:
    memory = bytearray(8 * 4)
    allocator = PageAllocator(4, memoryview(memory).cast("Q"))
    pages = allocator.allocate(2)
    assert pages is not None
    assert list(array("Q", bytes(memory))) == [int(page in pages) for page in range(4)]


def test_generations_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="3 generations for 4 pages"):
        PageAllocator(4, array("Q", [0, 0, 0]))


def test_freeing_twice_is_noticed() -> None:
    allocator = PageAllocator(2)
    pages = allocator.allocate(1)
    assert pages is not None
    allocator.free(pages)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(pages)


@pytest.mark.parametrize(
    ("owned", "message"),
    [([0, 0, 1], "two owners"), ([0], "lost"), ([0, 1, 2], "owned page is free"), ([0, 1], None)],
)
def test_integrity_compares_the_owners_with_the_free_list(owned: list[int], message: str | None) -> None:
    allocator = PageAllocator(4)
    assert allocator.allocate(2) == [0, 1]
    if message is None:
        allocator.check_integrity(owned)
        return
    with pytest.raises(AssertionError, match=message):
        allocator.check_integrity(owned)
