from array import array

import pytest

from router.prompt import PromptPages, cache_salt

TOKENS = array("i", range(33))


@pytest.mark.parametrize(("length", "pages"), [(1, 0), (16, 0), (17, 1), (32, 1), (33, 2)])
def test_the_page_of_the_last_token_never_counts(length: int, pages: int) -> None:
    assert len(PromptPages(TOKENS[:length], b"", "m").digests(16)) == pages


def test_names_differ_by_tenant_model_and_page_size_and_chain() -> None:
    base = PromptPages(TOKENS, cache_salt("a", b"key"), "m")
    assert base.digests(16)[0] == PromptPages(TOKENS[:20], cache_salt("a", b"key"), "m").digests(16)[0]
    others = [
        PromptPages(TOKENS, cache_salt("b", b"key"), "m").digests(16),
        PromptPages(TOKENS, cache_salt("a", b"other key"), "m").digests(16),
        PromptPages(TOKENS, cache_salt("a", b"key"), "n").digests(16),
        base.digests(8),
    ]
    names = [digest for digests in (base.digests(16), *others) for digest in digests]
    assert len(set(names)) == len(names)


def test_a_long_key_is_as_good_as_a_short_one() -> None:
    assert cache_salt("a", b"k" * 100) != cache_salt("a", b"k" * 101)
