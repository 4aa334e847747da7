"""Grammars over a real vocabulary: what follows them, what is refused, and what a hostile one may cost."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llguidance import LLTokenizer

from engine.core.errors import CheckpointError, InvalidRequest
from engine.core.types import Grammar, GrammarKind
from engine.grammar import compiler as module
from engine.grammar.compiler import Compiler, choice_grammar
from engine.grammar.vocabulary import load_vocabulary
from engine.models.builtin import FOLDER
from tests.fakes.checkpoints import tiny_checkpoint
from tests.fakes.text_models import FAMILIES, write_family

VOCAB = 4096
SCHEMA, LENIENT, REGEX, LARK = GrammarKind


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return load_vocabulary(FOLDER, VOCAB)


@pytest.fixture
def compiler(tokenizer: LLTokenizer) -> Iterator[Compiler]:
    compiler = Compiler(lambda: tokenizer)
    yield compiler
    compiler.close()


def follows(compiler: Compiler, tokenizer: LLTokenizer, grammar: Grammar, text: str) -> bool:
    """Whether `text` may be the whole answer."""
    matcher = compiler.open(grammar).result()
    return all(map(matcher.consume_token, tokenizer.tokenize_str(text))) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        (SCHEMA, '{"type": "object", "properties": {"a": {"enum": [1, "é"]}}}', '{"a": "é"}', '{"a": 2}'),
        (SCHEMA, '{"type": "integer", "minimum": 3, "maximum": 12}', "12", "13"),
        (SCHEMA, '{"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}}', "true", "null"),
        (LENIENT, '{"type": "array", "items": {"type": "integer"}, "uniqueItems": true}', "[1, 1]", '["1"]'),
        (REGEX, "[0-9]{3}-(a|b)+", "123-abba", "12-a"),
        (LARK, 'start: "(" start ")" | "x"', "((x))", "((x)"),
    ],
)
def test_what_follows_and_what_does_not(
    compiler: Compiler, tokenizer: LLTokenizer, kind: GrammarKind, source: str, good: str, bad: str
) -> None:
    assert follows(compiler, tokenizer, Grammar(kind, source), good)
    assert not follows(compiler, tokenizer, Grammar(kind, source), bad)


def test_choices_are_taken_letter_by_letter(compiler: Compiler, tokenizer: LLTokenizer) -> None:
    choices = ["yes", "no", 'a "quoted"\n\\line', "é|.*", "/x/", "%json {}"]
    grammar = choice_grammar(choices)
    assert all(follows(compiler, tokenizer, grammar, choice) for choice in choices)
    assert not any(follows(compiler, tokenizer, grammar, text) for text in ("ye", "yes no", "é", "x", "{}"))


def test_white_space_has_an_end(compiler: Compiler, tokenizer: LLTokenizer) -> None:
    grammar = Grammar(SCHEMA, '{"type": "array"}')
    assert follows(compiler, tokenizer, grammar, "[\n    1,\n    2\n]")
    assert not follows(compiler, tokenizer, grammar, "[" + " " * 40 + "]")


def test_a_matcher_stands_after_the_tokens_so_far(compiler: Compiler, tokenizer: LLTokenizer) -> None:
    grammar, tokens = Grammar(REGEX, "abc[0-9]+"), tokenizer.tokenize_str("abc1")
    resumed = compiler.open(grammar, tokens).result()
    whole = compiler.open(grammar).result()
    assert whole.consume_tokens(tokens) and whole.compute_bitmask() == resumed.compute_bitmask()
    with pytest.raises(InvalidRequest, match="do not follow"):
        compiler.open(grammar, tokens[::-1] * 2).result()


def test_a_row_too_wide_to_follow_is_said_to_be_so(compiler: Compiler, tokenizer: LLTokenizer) -> None:
    """What the limit forbids is not what the tokens did wrong."""
    optional = {"type": "object", "properties": {f"key{n}": {"type": "string"} for n in range(1200)}}
    schema = Grammar(SCHEMA, json.dumps(optional | {"additionalProperties": False}))
    with pytest.raises(InvalidRequest, match="max is 2000"):
        compiler.open(schema, tokenizer.tokenize_str('{"')).result()


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        (SCHEMA, '{"type": "strin"}', "strin"),
        (SCHEMA, '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (SCHEMA, '{"$ref": "http://127.0.0.1:1/x"}', "does not fetch"),
        (SCHEMA, "[1]", "object"),
        (SCHEMA, "not JSON", "expected"),
        (SCHEMA, '{"pattern": "(a", "type": "string"}', "unclosed"),
        (REGEX, "(a|b", "unclosed"),
        (REGEX, "(?=a)b", "look"),
        (LARK, "start: nothing", "nothing"),
        (LARK, "", "Empty"),
        (REGEX, "\ud800", "surrogates"),
        (REGEX, "a" * (module.MAX_SOURCE_CHARS + 1), "characters"),
    ],
)
def test_what_is_no_grammar_is_refused_in_words(
    compiler: Compiler, kind: GrammarKind, source: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        compiler.open(Grammar(kind, source)).result()


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (REGEX, "(a{1000}){1000}"),
        (REGEX, "((a?){50}){50}b"),
        (REGEX, "(?:a|aa|aaa|.){1000}(?:b.{300}){10}c"),
        (REGEX, "[\\w\\s]{50000}"),
        (SCHEMA, json.dumps({"enum": [f"value-{n}" for n in range(5000)]})),
        (SCHEMA, json.dumps({"properties": {f"p{n}": {"pattern": "(a|b){1,500}"} for n in range(400)}})),
        (LARK, 'start: a*\na: b*\nb: c*\nc: "x" | ""'),
        (LARK, "start: " + "(" * 5000 + '"x"' + ")" * 5000),
    ],
)  # fmt: skip
def test_a_hostile_grammar_is_refused_or_compiled_in_little_time(
    compiler: Compiler, kind: GrammarKind, source: str
) -> None:
    """In CPU seconds of the process, which others on the machine do not change much."""
    begun_s = time.process_time()
    try:
        matcher = compiler.open(Grammar(kind, source)).result()
    except InvalidRequest:
        matcher = None
    for _ in range(20 if matcher else 0):
        assert matcher is not None
        mask = matcher.compute_bitmask()
        matcher.consume_token(next(token for token in range(VOCAB) if mask[token // 8] >> token % 8 & 1))
        if matcher.is_stopped():
            break
    assert time.process_time() - begun_s < 5.0


def test_the_same_grammar_is_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Grammar(REGEX, "a+"), Grammar(REGEX, "(")
    assert not compiler.open(good).result().consume_token(0), "this one is in an error now"
    with pytest.raises(InvalidRequest):
        compiler.open(bad).result()
    monkeypatch.setattr(module, "_serialized", None)
    assert not compiler.open(good).result().is_error(), "what one request did to its own shows in another's"
    with pytest.raises(InvalidRequest):
        compiler.open(bad).result()
    with pytest.raises(TypeError):
        compiler.open(Grammar(REGEX, "b+")).result()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_families_of_tokenizers(tmp_path: Path, family: str) -> None:
    folder = write_family(tmp_path, family)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = load_vocabulary(folder, size)
    assert tokenizer.vocab_size == size
    compiler = Compiler(lambda: tokenizer)
    assert follows(compiler, tokenizer, choice_grammar(["naïve 🙂 dog"]), "naïve 🙂 dog")
    compiler.close()


def test_a_model_that_cannot_end_has_no_grammars(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "byte_level", eos_token_id=None)
    with pytest.raises(InvalidRequest, match="end of sequence"):
        load_vocabulary(folder, 1000)
    (folder / "tokenizer.json").unlink()
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    with pytest.raises(CheckpointError, match="missing"):
        load_vocabulary(folder, 1000)
    with pytest.raises(CheckpointError, match="no grammars"):
        load_vocabulary(tiny_checkpoint("llama"), 3)


def test_what_is_compiled_waits_for_no_other(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step waits for `open`, and with it all rows of the step."""
    known, new, bad = Grammar(REGEX, "a+"), Grammar(REGEX, "b+"), Grammar(REGEX, "(")
    goes_on, woken, compile = threading.Event(), threading.Semaphore(0), module._serialized

    def slowly(grammar: Grammar) -> str:
        assert grammar == known or goes_on.wait(60.0)
        return compile(grammar)

    monkeypatch.setattr(module, "_serialized", slowly)
    compiler.wake = woken.release
    assert not compiler.is_compiled(known) and woken.acquire(timeout=60.0) and compiler.is_compiled(known)
    assert not compiler.is_compiled(new) and not compiler.is_compiled(bad) and not compiler.is_compiled(new)
    assert compiler.open(known).result(60.0).compute_bitmask()
    goes_on.set()
    assert all(woken.acquire(timeout=60.0) for _ in range(2)) and not woken.acquire(blocking=False), "each once"
    assert compiler.is_compiled(new) and compiler.is_compiled(bad)
    with pytest.raises(InvalidRequest):
        compiler.open(bad).result(60.0)
