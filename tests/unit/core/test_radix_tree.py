from array import array

import pytest

from engine.core.digest import page_digests, page_key, root_digest
from engine.core.messages import PagesRemoved, PagesStored
from engine.core.radix_tree import Node, RadixTree


def data_of(*tokens: int) -> bytes:
    return array("i", tokens).tobytes()


def store(tree: RadixTree, tokens: list[int], pages: list[int], salt: bytes = b"") -> Node:
    node, found = tree.match(salt, data_of(*tokens), len(pages))
    size = len(tokens) // len(pages)
    node, _ = tree.insert(node, data_of(*tokens[len(found) * size :]), pages[len(found) :])
    return node


def test_the_longest_prefix_of_full_pages_is_found() -> None:
    tree = RadixTree(2, "m")
    store(tree, [1, 2, 3, 4, 5, 6], [10, 11, 12])
    assert tree.match(b"", data_of(1, 2, 3, 4, 5, 6, 7), 9)[1] == [10, 11, 12]
    assert tree.match(b"", data_of(1, 2, 3, 4, 5, 7), 9)[1] == [10, 11]
    assert tree.match(b"", data_of(1, 2, 3), 9)[1] == [10]
    assert tree.match(b"", data_of(2, 1), 9)[1] == []
    assert tree.match(b"", data_of(1, 2, 3, 4, 5, 6), 1)[1] == [10]


def test_salts_share_nothing() -> None:
    tree = RadixTree(1, "m")
    store(tree, [1, 2], [0, 1], b"one")
    assert tree.match(b"two", data_of(1, 2), 2)[1] == []
    assert tree.match(b"one", data_of(1, 2), 2)[1] == [0, 1]


def test_a_lock_holds_at_its_place_when_the_run_is_split() -> None:
    tree = RadixTree(1, "m")
    store(tree, [1, 2, 3], [0, 1, 2])
    deep, _ = tree.match(b"", data_of(1, 2, 3), 3)
    tree.lock(deep)
    tree.match(b"", data_of(1), 1)
    assert tree.evict(3) == [] and tree.num_evictable == 0
    tree.unlock(deep)
    assert sorted(tree.evict(3)) == [0, 1, 2]


def test_a_lock_protects_its_prefix_and_not_what_is_below() -> None:
    tree = RadixTree(1, "m")
    store(tree, [1, 2, 3], [0, 1, 2])
    upper, _ = tree.match(b"", data_of(1, 2), 2)
    tree.lock(upper)
    assert tree.evict(3) == [2]
    assert tree.match(b"", data_of(1, 2, 3), 3)[1] == [0, 1]


def test_the_least_recently_used_leaf_goes_first_from_its_end() -> None:
    tree = RadixTree(1, "m")
    store(tree, [1, 2], [0, 1])
    store(tree, [3, 4], [2, 3])
    tree.match(b"", data_of(1, 2), 2)
    assert tree.evict(1) == [3]
    assert tree.evict(1) == [2]
    assert tree.evict(1) == [1]


def test_pages_of_known_tokens_come_back_to_the_caller() -> None:
    tree = RadixTree(1, "m")
    root, _ = tree.match(b"", b"", 0)
    tree.lock(root)
    store(tree, [1, 2, 3], [0, 1, 2])
    node, duplicates = tree.insert(root, data_of(1, 2, 9), [7, 8, 9])
    assert duplicates == [7, 8]
    assert tree.match(b"", data_of(1, 2, 9), 3) == (node, [0, 1, 9])


def test_events_name_prefixes_by_their_chained_digests() -> None:
    tree = RadixTree(2, "m")
    names = page_digests(root_digest(b"t", "m"), array("i", [1, 2, 3, 4, 5, 6]), 2)
    store(tree, [1, 2, 3, 4], [0, 1], b"t")
    store(tree, [1, 2, 3, 4, 5, 6], [0, 1, 2], b"t")
    both = [
        PagesStored(b"", tuple(names[:2]), tokens=data_of(1, 2, 3, 4)),
        PagesStored(names[1], (names[2],), tokens=data_of(5, 6)),
    ]
    assert tree.drain_events() == both == tree.stored_pages(with_tokens=True)
    assert tree.view_digest == page_key(names[0]) ^ page_key(names[1]) ^ page_key(names[2])
    assert tree.stored_pages() == [PagesStored(b"", tuple(names[:2])), PagesStored(names[1], (names[2],))]
    tree.evict(2)
    assert tree.drain_events() == [PagesRemoved((names[2], names[1]))]
    assert tree.drain_events() == []


def test_an_empty_tree_keeps_no_salt() -> None:
    tree = RadixTree(1, "m")
    for salt in (b"a", b"b"):
        node = store(tree, [1], [salt[0]], salt)
        tree.lock(node)
        tree.unlock(node)
    tree.evict(2)
    assert tree.check_integrity({}) == set()
    assert not tree._roots


def test_a_lock_taken_once_is_given_up_once() -> None:
    tree = RadixTree(1, "m")
    node = store(tree, [1], [0])
    tree.lock(node)
    tree.unlock(node)
    with pytest.raises(AssertionError, match="unlocked more often"):
        tree.unlock(node)


def test_a_long_prompt_is_one_run_until_somebody_leaves_it() -> None:
    tree = RadixTree(64, "m")
    tokens = list(range(8192))
    store(tree, tokens, list(range(128)))
    node, pages = tree.match(b"", data_of(*tokens), 128)
    assert pages == list(range(128)) and len(node.pages) == 128
    fork = [*tokens[:4096], *range(4096)]
    assert tree.match(b"", data_of(*fork), 128)[1] == list(range(64))
    assert tree.match(b"", data_of(*tokens), 128)[1] == list(range(128))
