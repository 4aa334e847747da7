"""The outline of what is cached where, against what the workers said."""

from random import Random

import pytest

from engine.core.messages import PagesCleared, PagesRemoved, PagesStored
from router import prefix_outline
from router.prefix_outline import PrefixNode, PrefixOutline


def names(text: str) -> tuple[bytes, ...]:
    return tuple(letter.encode() for letter in text)


def shown(nodes: list[PrefixNode]) -> list:
    """(first page, pages, holders, children) of each."""
    return [(node.digest.decode(), node.pages, "".join(node.workers), shown(node.children)) for node in nodes]


def test_runs_with_the_same_holders_are_one_node() -> None:
    outline = PrefixOutline()
    outline.apply("p", [PagesStored(b"", names("abc"))])
    outline.apply("d", [PagesStored(b"", names("ab")), PagesStored(b"b", names("xyz")), PagesStored(b"", names("q"))])
    assert shown(outline.tree(10)) == [("a", 2, "dp", [("x", 3, "d", []), ("c", 1, "p", [])]), ("q", 1, "d", [])]
    assert shown(outline.tree(1)) == [("a", 2, "dp", [])]
    outline.apply("p", [PagesRemoved(names("c"))])
    outline.apply("d", [PagesRemoved(names("b"))])
    below = ("b", 1, "p", [("x", 3, "d", [])])
    assert shown(outline.tree(10)) == [("a", 1, "dp", [below]), ("q", 1, "d", [])]
    outline.apply("d", [PagesCleared()])
    outline.forget("p")
    assert outline.tree(10) == [] and outline.num_left_out == 0


def test_a_deep_prefix_that_changes_hands_at_each_page_is_no_trouble() -> None:
    outline = PrefixOutline()
    chain = [number.to_bytes(4, "big") for number in range(5000)]
    outline.apply("p", [PagesStored(b"", tuple(chain))])
    outline.apply("d", [PagesStored(chain[n - 1] if n else b"", (chain[n],)) for n in range(0, 5000, 2)])
    (node,) = outline.tree(100)
    depth = 1
    while node.children:
        (node,), depth = node.children, depth + 1
    assert depth == 100


def test_memory_is_bounded_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_outline, "MAX_PAGES", 3)
    outline = PrefixOutline()
    outline.apply("p", [PagesStored(b"", names("abcde"))])
    assert (shown(outline.tree(9)), outline.num_left_out) == ([("a", 3, "p", [])], 2)
    outline.apply("p", [PagesRemoved(names("de"))])
    assert outline.num_left_out == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_the_workers_hold(seed: int) -> None:
    rng, outline = Random(seed), PrefixOutline()
    truth: dict[str, dict[bytes, bytes]] = {"p": {}, "d": {}}
    for _ in range(200):
        worker = rng.choice("pd")
        pages = truth[worker]
        if rng.random() < 0.6:
            parent = rng.choice([b"", *pages])
            chain = tuple(parent + bytes([rng.randrange(4)]) * n for n in range(1, rng.randint(2, 4)))
            outline.apply(worker, [PagesStored(parent, chain)])
            pages |= dict(zip(chain, (parent, *chain), strict=False))
        elif pages:
            leaves = [page for page in pages if page not in pages.values()]
            gone = rng.choice(leaves)
            outline.apply(worker, [PagesRemoved((gone,))])
            del pages[gone]

    def total(nodes: list[PrefixNode], worker: str) -> int:
        return sum(node.pages * (worker in node.workers) + total(node.children, worker) for node in nodes)

    tree = outline.tree(10_000)
    assert {worker: total(tree, worker) for worker in "pd"} == {worker: len(pages) for worker, pages in truth.items()}
