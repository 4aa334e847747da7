"""The outline of what is cached where, against what the workers hold."""

from collections.abc import Mapping, Sequence
from random import Random

import pytest

from router.prefix_outline import PrefixNode, num_shown, outline


def chain(text: str) -> list[bytes]:
    """One page a letter; like digests, a page's name stands for all before it."""
    return [text[: end + 1].encode() for end in range(len(text))]


def shown(nodes: list[PrefixNode]) -> list:
    """(first page, pages, holders, children) of each."""
    return [(node.digest.decode(), node.pages, "".join(node.workers), shown(node.children)) for node in nodes]


class Caches:
    """What each worker holds: prefixes."""

    def __init__(self, held: Mapping[str, Sequence[str]]) -> None:
        self.pages = {worker: {page for text in texts for page in chain(text)} for worker, texts in held.items()}

    def holders(self, pages: Sequence[bytes]) -> dict[str, int]:
        runs = {worker: sum(page in held for page in pages) for worker, held in self.pages.items()}
        return {worker: run for worker, run in runs.items() if run}


def test_runs_with_the_same_holders_are_one_node() -> None:
    caches = Caches({"p": ["abc"], "d": ["abxyz", "q"]})
    families = [[chain("abc"), chain("abxyz")], [chain("q")], [chain("unknown")]]
    below = [("abc", 1, "p", []), ("abx", 3, "d", [])]
    nodes = outline(families, caches.holders, 10)
    assert shown(nodes) == [("a", 2, "dp", below), ("q", 1, "d", [])]
    assert num_shown(nodes) == 2 * 2 + 1 + 3 + 1
    assert shown(outline(families, caches.holders, 1)) == [("a", 2, "dp", [])]


def test_prompts_part_where_they_differ_though_the_same_workers_hold_both() -> None:
    caches = Caches({"p": ["abcd", "abxy"]})
    (node,) = outline([[chain("abcd"), chain("abxy"), chain("ab")]], caches.holders, 10)
    assert shown([node]) == [("a", 2, "p", [("abc", 2, "p", []), ("abx", 2, "p", [])])]


@pytest.mark.parametrize("seed", range(20))
def test_each_page_that_a_prompt_names_is_there_once_with_all_its_holders(seed: int) -> None:
    rng = Random(seed)
    texts = ["a" + "".join(rng.choice("xy") for _ in range(rng.randrange(6))) for _ in range(6)]
    caches = Caches({worker: rng.sample(texts, 3) for worker in "pdq"})
    nodes = outline([[chain(text) for text in texts]], caches.holders, 1000)
    named = {page for text in texts for page in chain(text)}
    assert num_shown(nodes) == sum(len(held & named) for held in caches.pages.values())
    stack = list(nodes)
    while stack:
        node = stack.pop()
        assert set(node.workers) == {worker for worker, held in caches.pages.items() if node.digest in held}
        stack += node.children
