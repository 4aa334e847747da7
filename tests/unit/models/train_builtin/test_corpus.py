"""Documents: what the standard library says of itself, and the conversations made from it."""

from random import Random

import pytest

from engine.models.train_builtin import dialogue
from engine.models.train_builtin.library import Entry, standard_library
from engine.models.train_builtin.packages import PERMISSIVE, RESTRICTED

JOIN = Entry("os.path.join", "function", "(a, *p)", "Join two or more pathname components. If any is\nabsolute, ...")


@pytest.fixture(scope="module")
def library() -> dict[str, Entry]:
    return {entry.name: entry for entry in standard_library()}


@pytest.mark.parametrize(
    ("name", "kind", "signature", "start"),
    [
        ("os.path.join", "function", "(a, *p)", "Join two or more pathname components"),
        ("len", "function", "(obj)", "Return the number of items in a container."),
        ("str.upper", "method", "()", "Return a copy of the string converted to uppercase."),
        ("ValueError", "exception", None, "Inappropriate argument value (of correct type)."),
        ("map", "class", "(func, *iterables)", "Make an iterator that computes the function"),
        ("math.sqrt", "function", "(x)", "Return the square root of x."),
        ("re", "module", "", "Support for regular expressions (RE)."),
    ],
)
def test_entries_of_the_standard_library(
    library: dict[str, Entry], name: str, kind: str, signature: str | None, start: str
) -> None:
    entry = library[name]
    assert entry.kind == kind
    assert entry.summary.startswith(start)
    assert signature is None or entry.signature == signature


def test_entries_are_many_plain_and_stable(library: dict[str, Entry]) -> None:
    assert len(library) > 3000
    assert list(library) == [entry.name for entry in standard_library()]
    for entry in library.values():
        assert entry.doc.isascii()
        assert "\n" not in entry.summary
        assert "0x" not in entry.doc + entry.signature  # an address would differ from run to run


def test_conversations_about_an_entry_alternate_and_answer() -> None:
    turns = list(dialogue.about(JOIN, Random(0)))
    assert all(len(each) == 2 for each in turns)
    asks = {ask for ask, _ in turns}
    assert len(asks) == len(turns) > 6
    answers = [answer for _, answer in turns]
    assert "os.path.join: Join two or more pathname components. If any is absolute, ..." in answers
    assert any(answer.startswith("os.path.join(a, *p)\n") for answer in answers)


def test_examples_are_taken_from_the_documentation() -> None:
    doc = "Merge.\n\n    >>> list(merge([1], [2]))\n    [1, 2]\n\nMore."
    turns = dict(dialogue.about(Entry("heapq.merge", "function", "", doc), Random(1)))
    assert ">>> list(merge([1], [2]))\n[1, 2]" in turns.values()


def test_small_talk_has_one_answer_a_question() -> None:
    asked = [ask for ask, _ in dialogue.small_talk()]
    answers: dict[str, str] = {}
    for ask, answer in dialogue.small_talk():
        assert answers.setdefault(ask, answer) == answer
    assert len(asked) > 300


def test_arithmetic_is_right() -> None:
    for _, answer in dialogue.arithmetic():
        left, right = answer.split(" = ")
        a, sign, b = left.split()
        assert int(right) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def test_unknown_names_are_not_known(library: dict[str, Entry]) -> None:
    entries, random = list(library.values()), Random(0)
    for _ in range(200):
        _, answer = dialogue.unknown(entries, random)
        assert answer.removeprefix("I do not know ").split(". I have")[0] not in library


@pytest.mark.parametrize(
    ("licence", "usable"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND Zlib", True),
        ("Apache Software License", True),
        ("Python Software Foundation License", True),
        ("MPL-2.0 AND MIT", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
        ("LGPL-3.0-only", False),
        ("NVIDIA Proprietary Software", False),
        ("", False),
    ],
)
def test_only_permissive_licences_are_used(licence: str, usable: bool) -> None:
    assert bool(PERMISSIVE.search(licence) and not RESTRICTED.search(licence)) == usable
