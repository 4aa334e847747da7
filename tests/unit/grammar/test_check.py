"""The process that meets grammars first: what hangs or crashes it hurts nobody else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core.errors import CheckpointError, InvalidRequest, Unavailable
from engine.core.types import Grammar, GrammarKind
from engine.grammar.check import GrammarChecker
from engine.models.builtin import FOLDER

LONG = "start: " + " ".join('"x"?' for _ in range(15000))
GOOD = Grammar(GrammarKind.REGEX, "[0-9]+")
DEEP = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(9000)) + '\nr9000: "x"'
SLOW = json.dumps({"allOf": [{"type": "string", "pattern": f"(.*{chr(97 + n % 26)}){{20}}"} for n in range(60)]})


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker(FOLDER, 4096)
    yield checker
    checker.close()


def test_good_and_bad(checker: GrammarChecker) -> None:
    checker.check(GOOD).result()
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="unclosed"):
            checker.check(Grammar(GrammarKind.REGEX, "(")).result()
    with pytest.raises(InvalidRequest, match="surrogates"):
        checker.check(Grammar(GrammarKind.REGEX, "\ud800")).result()
    with pytest.raises(InvalidRequest, match="characters"):
        checker.check(Grammar(GrammarKind.REGEX, "a" * 200_000)).result()


@pytest.mark.parametrize(
    "grammar",
    [Grammar(GrammarKind.LARK, DEEP), Grammar(GrammarKind.JSON_SCHEMA, SLOW), Grammar(GrammarKind.LARK, LONG)],
    ids=["crashes", "takes minutes", "takes seconds"],
)
def test_what_the_compiler_does_not_survive_is_refused_and_the_next_one_checked(
    checker: GrammarChecker, grammar: Grammar
) -> None:
    with pytest.raises(InvalidRequest, match="too complex"):
        checker.check(grammar).result()
    child = checker._child
    with pytest.raises(InvalidRequest, match="too complex"):
        checker.check(grammar).result()
    assert checker._child is child, "it is known and not tried again"
    checker.check(GOOD).result()


def test_a_checkpoint_without_grammars(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    checker = GrammarChecker(tmp_path, 10)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            checker.check(GOOD).result()
    checker.close()
    checker.close()


def test_a_process_that_does_not_start_is_no_fault_of_the_grammar(tmp_path: Path) -> None:
    checker = GrammarChecker(tmp_path, 10)
    checker._command[1:] = ["-c", "raise SystemExit(3)"]
    for _ in range(2):
        with pytest.raises(Unavailable, match="does not start"):
            checker.check(GOOD).result()
