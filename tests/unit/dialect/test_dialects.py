"""Formats by example, what broken ones become, and how a dialect is told from a template."""

import json
from typing import Any

import numpy as np
import pytest

from engine.grammar.compiler import Compiler
from engine.grammar.vocabulary import load_vocabulary
from engine.models.builtin import FOLDER
from router.dialect.base import CallArguments, CallStart, Content, Piece, Reasoning
from router.dialect.dialect import Dialect, dialect_of
from router.dialect.force import calls_grammar
from tests.property.test_dialects import parsed

HERMES, LLAMA3, MISTRAL = Dialect("hermes"), Dialect("llama3"), Dialect("mistral")


@pytest.mark.parametrize(
    ("dialect", "text", "pieces"),
    [
        (HERMES, '<tool_call>{"name":"f"}</tool_call> ok', [CallStart(0, "f"), CallArguments(0, "{}"), Content("ok")]),
        (HERMES, "so <tool_call>", [Content("so<tool_call>")]),
        (HERMES, "a < b <tool", [Content("a < b <tool")]),
        (HERMES, '<tool_call>{"nam": 3}</tool_call> x', [Content('<tool_call>{"nam": 3}</tool_call> x')]),
        (HERMES, '<tool_call>{"name": "no name!"}', [Content('<tool_call>{"name": "no name!"}')]),
        (HERMES, '<tool_call>{"name": "f", "argu', [Content('<tool_call>{"name": "f", "argu')]),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}', [Content('<tool_call>{"name": "f", "arguments": [1]}')]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a', [CallStart(0, "f"), CallArguments(0, '{"a')]),
        (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', [CallStart(0, "f"), CallArguments(0, "{}")]),
        (LLAMA3, '{"type": "function", "name": "f", "parameters": {"x": null}}',
         [CallStart(0, "f"), CallArguments(0, '{"x": null}')]),
        (LLAMA3, ' {"answer": 42} ', [Content('{"answer": 42} ')]),
        (LLAMA3, 'So: {"name": "f"}', [Content('So: {"name": "f"}')]),
        (MISTRAL, "Hm. [TOOL_CALLS]f[CALL_ID]ab1[ARGS]{}", [Content("Hm."), CallStart(0, "f"), CallArguments(0, "{}")]),
        (MISTRAL, "[TOOL_CALLS] what?", [Content("[TOOL_CALLS] what?")]),
        (MISTRAL, "[TOOL_CALLS][x] y", [Content("[TOOL_CALLS][x] y")]),
        (MISTRAL, '[TOOL_CALLS][{"a": 1}]', [Content('[TOOL_CALLS][{"a": 1}]')]),
        (Dialect("none", True), "<think>\nhm\n</think>\n\nyes", [Reasoning("hm"), Content("yes")]),
        (Dialect("none", True), "yes <think> no", [Content("yes <think> no")]),
        (Dialect("none", True), "<think>hm", [Reasoning("hm")]),
    ],
)  # fmt: skip
def test_examples(dialect: Dialect, text: str, pieces: list[Piece]) -> None:
    assert parsed(dialect, [text]) == pieces


def test_thoughts_that_the_prompt_began() -> None:
    thinks = Dialect("hermes", True)
    said = parsed(thinks, ["first this </th", "ink> then <think>"], inside=True)
    assert said == [Reasoning("first this"), Content("then <think>")]


@pytest.mark.parametrize(
    ("template", "dialect"),
    [
        ("{{ '<tool_call>' }} ... </think>", Dialect("hermes", True)),
        ("[TOOL_CALLS] {{ call | tojson }}", Dialect("mistral")),
        ("[TOOL_CALLS]{{ name }}[ARGS]", Dialect("mistral", False, True)),
        ("<|python_tag|>", Dialect("llama3")),
        ("<tool_call>\n<function=", Dialect()),
        ("{{ message.content.split('</think>')[-1] }}", Dialect("none", True)),
        ("plain", Dialect()),
    ],
)
def test_a_template_tells(template: str, dialect: Dialect) -> None:
    assert dialect_of(template) == dialect


def test_flags_overrule_the_template() -> None:
    assert dialect_of("<tool_call></think>", "llama3", "none") == Dialect("llama3")
    assert dialect_of("", "hermes", "think") == Dialect("hermes", True)


CITY: dict[str, Any] = {"type": "string", "maxLength": 8}
TOOLS = [
    ("weather", {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"],
                 "additionalProperties": False, "$defs": {"City": CITY}}),
    ("now", {}),
]  # fmt: skip


@pytest.mark.parametrize("dialect", [HERMES, LLAMA3, MISTRAL, Dialect("mistral", False, True)])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_forced_answer_is_calls_that_the_parser_reads(dialect: Dialect, parallel: bool) -> None:
    """Whatever the model would rather say: the longest way through the grammar, at random."""
    tokenizer = load_vocabulary(FOLDER, 4096)
    compiler = Compiler(lambda: tokenizer)
    grammar = calls_grammar(dialect, TOOLS, {}, parallel=parallel)
    for seed in range(12):
        matcher, said = compiler.open(grammar).result(), []
        while not matcher.is_stopped() and len(said) < 400:
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
            token = allowed[hash((seed, len(said))) % len(allowed)]
            if token in tokenizer.eos_tokens:
                break
            assert matcher.consume_token(token)
            said.append(token)
        pieces = parsed(dialect, [tokenizer.decode_str(said)])
        assert matcher.is_accepting() or len(said) == 400
        calls = [piece for piece in pieces if isinstance(piece, CallStart)]
        assert pieces and calls and not any(isinstance(piece, Content) for piece in pieces)
        assert parallel or len(calls) == 1
        for start, arguments in zip(pieces[::2], pieces[1::2], strict=False):
            assert isinstance(start, CallStart) and isinstance(arguments, CallArguments)
            if len(said) < 400:
                value = json.loads(arguments.text)
                assert isinstance(value, dict) and (start.name == "now" or len(value["city"]) <= 8)
    compiler.close()


def test_marks_that_are_special_tokens_are_asked_for_by_id() -> None:
    source = calls_grammar(MISTRAL, TOOLS, {"[TOOL_CALLS]": 7}, parallel=True).source
    assert "<[7]>" in source and "TOOL_CALLS" not in source
