"""A grammar under which an answer is nothing but calls, in the model's own format: for tool_choice."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.core.types import Grammar, GrammarKind
from router.dialect import hermes, mistral
from router.dialect.dialect import Dialect

_BOUNDED = {"whitespace_pattern": r"[\x20\x0A\x09]{0,20}", "lenient": True}


def calls_grammar(
    dialect: Dialect, tools: Sequence[tuple[str, Mapping[str, Any]]], special: Mapping[str, int], *, parallel: bool
) -> Grammar:
    """At least one call of `tools`, (name, JSON Schema of the arguments) each; exactly one unless `parallel`.

    `special`: ids of marks that are special tokens, which no text can spell.
    """

    def mark(text: str) -> str:
        return f"<[{special[text]}]>" if text in special else json.dumps(text)

    def more(glue: str, rule: str = "call") -> str:
        return f" ({json.dumps(glue)} {rule})*" if parallel else ""

    key = "parameters" if dialect.tools == "llama3" else "arguments"
    heads = [json.dumps(f'{{"name": {json.dumps(name)}, "{key}": ') for name, _ in tools]
    calls = [f'{head} args{i} "}}"' for i, head in enumerate(heads)]
    match dialect.tools:
        case "hermes":
            start = f"one{more(chr(10), 'one')}"
            start += f'\none: {mark(hermes.OPEN)} "\\n" call "\\n" {mark(hermes.CLOSE)}'
        case "mistral" if dialect.names_first:
            calls = [f"{json.dumps(name)} {mark(mistral.ARGS)} args{i}" for i, (name, _) in enumerate(tools)]
            start = f"({mark(mistral.CALLS)} call)" + ("+" if parallel else "")
        case "mistral":
            start = f'{mark(mistral.CALLS)} "[" call{more(", ")} "]"'
        case _:
            start = f"call{more('; ')}"
    lines = [f"start: {start}", "call: " + " | ".join(f"call{i}" for i in range(len(tools)))]
    lines += [f"call{i}: {call}" for i, call in enumerate(calls)]
    for i, (_, schema) in enumerate(tools):
        lines.append(
            f"args{i}: %json {json.dumps({'type': 'object', **schema, 'x-guidance': _BOUNDED}, ensure_ascii=False)}"
        )
    return Grammar(GrammarKind.LARK, "\n".join(lines))
