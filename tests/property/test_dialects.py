"""Thoughts and calls of tools in a text: the same, and none lost, however the text was cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dialect.base import CallArguments, CallStart, Content, Piece, Reasoning
from router.dialect.dialect import Dialect

DIALECTS = [Dialect("hermes", True), Dialect("llama3", True), Dialect("mistral"), Dialect("none", True), Dialect()]
NOISE = st.lists(
    st.sampled_from(
        "<think> </think> <tool_call> </tool_call> [TOOL_CALLS] [ARGS] [CALL_ID] <|python_tag|> < <tool [TOOL".split()
        + "[ ] { } ; , : f x é 12".split()
        + [" ", "\n", '"', "\\", '"name"', '"arguments": {', '{"name": "g", "parameters": {}}']
        + ['{"name": "f", "arguments": {"a": [1, "}"]}}']
    ),
    max_size=14,
).map("".join)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), min_size=1, max_size=3)
WORDS = st.text("abc é.,!?", min_size=1, max_size=12).filter(str.strip).map(str.strip)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


def parsed(dialect: Dialect, parts: list[str], *, inside: bool = False) -> list[Piece]:
    """Neighbours of one kind are one piece."""
    parser = dialect.parser(with_tools=True, thoughts=True, inside_thoughts=inside)
    pieces = [piece for part in parts for piece in parser.push(part) if piece != Content("")] + parser.finish()
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        match last, piece:
            case (Content(a), Content(b)):
                out[-1] = Content(a + b)
            case (Reasoning(a), Reasoning(b)):
                out[-1] = Reasoning(a + b)
            case (CallArguments(i, a), CallArguments(j, b)) if i == j:
                out[-1] = CallArguments(i, a + b)
            case _:
                out.append(piece)
    return out


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: f"{dialect.tools}-{dialect.thinks}")
@settings(max_examples=60)
@given(text=NOISE, places=st.lists(st.integers(0, 400), max_size=12), inside=st.booleans())
def test_cuts_change_nothing(dialect: Dialect, text: str, places: list[int], inside: bool) -> None:
    whole = parsed(dialect, [text], inside=inside)
    assert parsed(dialect, cut(text, places), inside=inside) == whole
    assert parsed(dialect, list(text), inside=inside) == whole
    started = [piece.index for piece in whole if isinstance(piece, CallStart)]
    assert started == list(range(len(started)))
    for piece in whole:
        assert not isinstance(piece, CallArguments) or piece.index in started


def hermes(calls: list[tuple[str, Any]]) -> str:
    spelled = (json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls)
    return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in spelled)


def llama3(calls: list[tuple[str, Any]]) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls)


def mistral(calls: list[tuple[str, Any]]) -> str:
    listed = [{"arguments": arguments, "name": name, "id": "abc123def"} for name, arguments in calls]
    return f"[TOOL_CALLS]{json.dumps(listed, ensure_ascii=False)}"


def mistral_names_first(calls: list[tuple[str, Any]]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)


@pytest.mark.parametrize(
    ("dialect", "spell", "talks"),
    [
        (Dialect("hermes", True), hermes, True),
        (Dialect("llama3", True), llama3, False),
        (Dialect("mistral", True), mistral, True),
        (Dialect("mistral", True, names_first=True), mistral_names_first, True),
    ],
    ids=["hermes", "llama3", "mistral", "mistral, names first"],
)
@given(
    calls=CALLS,
    thought=WORDS | st.just(""),
    words=WORDS | st.just(""),
    places=st.lists(st.integers(0, 400), max_size=9),
)
def test_what_is_written_is_read(
    dialect: Dialect, spell: Any, talks: bool, calls: list, thought: str, words: str, places: list[int]
) -> None:
    words = words if talks else ""
    text = (f"<think>\n{thought}\n</think>\n\n" if thought else "") + (words + "\n" if words else "") + spell(calls)
    pieces = parsed(dialect, cut(text, places))
    expected: list[Piece] = ([Reasoning(thought)] if thought else []) + ([Content(words)] if words else [])
    assert pieces[: len(expected)] == expected
    rest = pieces[len(expected) :]
    assert [(piece.index, piece.name) for piece in rest[::2]] == [(n, name) for n, (name, _) in enumerate(calls)]
    assert [json.loads(piece.text) for piece in rest[1::2]] == [arguments for _, arguments in calls]


@given(text=st.text('abc <>[]{}"\n:,', max_size=30), places=st.lists(st.integers(0, 40), max_size=6))
def test_ordinary_text_stays_as_it_is(text: str, places: list[int]) -> None:
    for dialect in (Dialect("hermes"), Dialect("mistral"), Dialect("none", True)):
        assert "".join(piece.text for piece in parsed(dialect, cut(text, places))) == text
