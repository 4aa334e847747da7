"""What a client may say about the form of an answer, in the words of several APIs, as one grammar that was compiled."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, StringConstraints, model_validator
from typing_extensions import TypeAliasType

from engine.core.errors import InvalidRequest, Overloaded
from engine.core.types import Grammar, GrammarKind
from engine.grammar.compiler import MAX_SOURCE_CHARS, choice_grammar
from router.doors.sampling import ONE_COMPLAINT, SamplingFields
from router.text.model import ServedModel

CHECK_TIMEOUT_S = 20.0
"""One grammar takes at most a few seconds, the first one also the reading of the vocabulary; the rest is a queue."""

Schema = dict[str, Any] | bool | StrictStr
ChoiceText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096)]
Choices = TypeAliasType("Choices", Annotated[list[ChoiceText], *ONE_COMPLAINT, Field(min_length=1, max_length=1024)])
Source = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_SOURCE_CHARS)]


class JsonSchemaFormat(BaseModel):
    """The schema of a response format. `strict` refuses what cannot be enforced; without it that is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's response_format."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is needed with type json_schema, and only there")
        return self

    def grammar(self) -> Grammar | None:
        """None for plain text."""
        if self.json_schema is None:
            return JSON_OBJECT if self.type == "json_object" else None
        return schema_grammar(self.json_schema.schema_, "response_format", strict=bool(self.json_schema.strict))


class StructuredOutputs(BaseModel):
    """vLLM's structured_outputs: one of its fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None

    def grammars(self, param: str) -> list[Grammar]:
        """One for each field that is set. Raises InvalidRequest that names `param`."""
        found = []
        if self.json_ is not None:
            found.append(schema_grammar(self.json_, param))
        if self.json_object:
            found.append(JSON_OBJECT)
        if self.regex is not None:
            found.append(Grammar(GrammarKind.REGEX, self.regex))
        if self.choice is not None:
            found.append(choice_grammar(self.choice))
        if self.grammar is not None:
            found.append(Grammar(GrammarKind.LARK, self.grammar))
        return found


class StructuredFields(SamplingFields):
    """Sampling, and what the answer must look like. Of the latter, one at most."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Source | None = None
    guided_choice: Choices | None = None
    guided_grammar: Source | None = None

    def grammar(self) -> tuple[Grammar, str] | None:
        """The one grammar and the field that asks for it. Raises InvalidRequest for several."""
        found: list[tuple[Grammar, str]] = []
        if self.response_format is not None and (form := self.response_format.grammar()):
            found.append((form, "response_format"))
        if self.structured_outputs is not None:
            found += [(each, "structured_outputs") for each in self.structured_outputs.grammars("structured_outputs")]
        guided: dict[str, object] = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        for name, value in guided.items():
            if value is not None:
                param = f"guided_{name}"
                found += [(each, param) for each in StructuredOutputs.model_validate({name: value}).grammars(param)]
        if len(found) > 1:
            raise InvalidRequest(f"{found[1][1]}: an answer follows one grammar, not several", param=found[1][1])
        return found[0] if found else None


JSON_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


def schema_grammar(schema: Mapping[str, Any] | bool | str, param: str, *, strict: bool = True) -> Grammar:
    """A JSON Schema, also as a text. Raises InvalidRequest that names `param`."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema) if len(schema) <= MAX_SOURCE_CHARS else schema
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{param}: the schema is not JSON: {error}", param=param) from error
        if not isinstance(schema, dict | bool):
            raise InvalidRequest(f"{param}: a schema is a JSON object", param=param)
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    kind = GrammarKind.JSON_SCHEMA if strict else GrammarKind.LENIENT_JSON_SCHEMA
    return Grammar(kind, _bounded_json(schema, param))


def _bounded_json(value: object, param: str) -> str:
    """As text; one that is too long is never whole in memory."""
    parts, size = [], 0
    for part in json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"{param}: the schema has more than {MAX_SOURCE_CHARS} characters", param=param)
    return "".join(parts)


async def checked_grammar(
    model: ServedModel, asked: tuple[Grammar, str] | None, turn: AbstractAsyncContextManager[None]
) -> Grammar | None:
    """The grammar, when it can be compiled; the event loop goes on meanwhile. `turn` is the client's, to be entered.

    Raises:
        InvalidRequest: it cannot; the message says why and `param` which field.
        Overloaded: too many others are being checked.
    """
    if asked is None:
        return None
    grammar, param = asked
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), turn:
            await asyncio.wrap_future(model.grammars.check(grammar))
    except InvalidRequest as error:
        raise InvalidRequest(f"{param}: {error.message}", param=param) from error
    except TimeoutError:
        raise Overloaded("too many grammars wait to be checked", param=param, retry_after_s=CHECK_TIMEOUT_S) from None
    return grammar
