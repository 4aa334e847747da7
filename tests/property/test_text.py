"""Streaming text: any split of any text gives the same result, and a stop string never shows."""

import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.core.types import FinishReason
from router.api import Delta
from router.text.detokenizer import Detokenizer
from router.text.output import TextStream
from router.text.stops import StopMatcher
from router.text.tokenizer import Tokenizer
from tests.fakes.text_models import FAMILIES, served_model


@cache
def tokenizer_of(family: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return served_model(Path(folder), family).tokenizer


def split(items: list[int], cuts: list[int]) -> list[tuple[int, ...]]:
    edges = sorted({0, len(items), *(cut % (len(items) + 1) for cut in cuts)})
    return [tuple(items[begin:end]) for begin, end in pairwise(edges)]


# Few letters, so that stop strings overlap themselves, each other and the text.
letters = st.text("abé🙂", max_size=40)
stop_strings = st.lists(st.text("abé🙂", min_size=1, max_size=5), max_size=3)
cuts = st.lists(st.integers(0, 1000), max_size=12)


@given(letters, stop_strings, st.lists(st.integers(0, 40), max_size=8))
def test_a_matcher_s_result_does_not_depend_on_the_split(text: str, stops: list[str], places: list[int]) -> None:
    def shown(pieces: list[str]) -> tuple[str, str | None]:
        matcher, out = StopMatcher(stops), ""
        for piece in pieces:
            result = matcher.push(piece)
            out += result.text
            if result.stop is not None:
                return out, result.stop
            assert not any(stop in out for stop in stops)
        return out + matcher.flush(), None

    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    assert shown(pieces) == shown([text]) == shown(list(text)) == expected(text, stops)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow way: cut at the first stop string to be complete, the longest of several."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.sampled_from(FAMILIES), st.text(max_size=60))
def test_streamed_text_is_the_text(family: str, text: str) -> None:
    tokenizer = tokenizer_of(family)
    detokenizer = Detokenizer(tokenizer.pieces, starts_text=True)
    ids = tokenizer.encode(text)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_become_replacements_as_python_decodes_them(data: bytes) -> None:
    tokenizer = tokenizer_of("byte_level")
    detokenizer = Detokenizer(tokenizer.pieces, starts_text=True)
    ids = [tokenizer.pieces.pieces.index(bytes([byte])) for byte in data]
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == data.decode(errors="replace")


@given(st.sampled_from(FAMILIES), letters, stop_strings, cuts, st.integers(0, 6))
def test_any_split_of_the_tokens_gives_the_same_answer(
    family: str, text: str, stops: list[str], places: list[int], min_tokens: int
) -> None:
    tokenizer = tokenizer_of(family)
    ids = list(tokenizer.encode(text, add_special_tokens=False)) or [0]

    def shown(parts: list[tuple[int, ...]]) -> tuple[str, int, object]:
        stream = TextStream(tokenizer.pieces, tuple(stops), min_tokens=min_tokens, starts_text=True)
        out, count = "", 0
        for index, part in enumerate(parts):
            last = FinishReason.LENGTH if index == len(parts) - 1 else None
            delta = stream.push(Delta(part, finish_reason=last))
            out, count = out + delta.text, count + len(delta.tokens)
            if delta.finish is not None:
                return out, count, delta.stopped_by
        raise AssertionError("no end")

    whole = shown([tuple(ids)])
    assert shown(split(ids, places)) == shown([(token,) for token in ids]) == whole
    if min_tokens == 0:
        assert not any(stop in whole[0] for stop in stops)
