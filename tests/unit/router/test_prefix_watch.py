from array import array

from engine.core.digest import page_digests, root_digest
from router.prefix_watch import PrefixWatch

ROOT = root_digest(b"", "m")


def see(watch: PrefixWatch, *tokens: int) -> None:
    buffer = array("i", tokens)
    watch.saw(page_digests(ROOT, buffer, 2), 2, buffer)


def test_prompts_that_begin_alike_have_in_common_what_all_of_them_have() -> None:
    watch = PrefixWatch()
    see(watch, 1, 2, 3, 4, 5, 6, 7, 8)
    (prefix,) = watch.top(5)
    assert (prefix.num_tokens, prefix.uses, list(prefix.head)) == (8, 1, [1, 2])
    see(watch, 1, 2, 3, 4, 5, 6, 9, 9, 9, 9)
    assert (prefix.num_tokens, prefix.uses) == (6, 2)
    see(watch, 1, 2, 3, 4, 5, 6)
    assert prefix.num_tokens == 6
    see(watch, 1, 2, 0, 0)
    see(watch, 1, 2, 3, 4, 5, 6)
    assert (prefix.num_tokens, prefix.uses) == (2, 5)
    see(watch, 1)
    assert len(watch.top(5)) == 1, "less than a page has no name"


def test_the_largest_saving_comes_first_and_old_ones_make_room() -> None:
    watch = PrefixWatch(max_prefixes=2)
    see(watch, 1, 1, 1, 1, 1, 1)
    for _ in range(4):
        see(watch, 2, 2)
    assert [prefix.head[0] for prefix in watch.top(5)] == [2, 1]
    see(watch, 3, 3)
    assert {prefix.head[0] for prefix in watch.top(5)} == {2, 3}
    assert len(watch.top(1)) == 1
