"""Tools and calls of tools as OpenAI clients write them, and what a request with tools means for one model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from typing_extensions import TypeAliasType

from engine.core.errors import InvalidRequest
from engine.core.types import Grammar
from router.dialect.force import calls_grammar
from router.doors.sampling import ONE_COMPLAINT
from router.text.model import ServedModel

ToolName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]


class Function(BaseModel):
    """What a tool is called and what it takes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema of an object."""
    strict: bool | None = None
    """Has no effect where the model is free to call or not; forced calls always follow the schema."""


class Tool(BaseModel):
    """One tool."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates want it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class FunctionName(BaseModel):
    """The function that is to be called."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str


class NamedTool(BaseModel):
    """A tool_choice that names one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: FunctionName


Tools = TypeAliasType("Tools", Annotated[list[Tool], *ONE_COMPLAINT, Field(max_length=128)])
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(BaseModel):
    """A call that the model made before."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=128)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_json(cls, value: str) -> str:
        try:
            json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise ValueError("the arguments of a call are a JSON text") from None
        return value or "{}"


class ToolCall(BaseModel):
    """The same with its id, as answers have it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str = Field(default="", max_length=128)
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """As chat templates want it: arguments as the value that they spell."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


ToolCalls = TypeAliasType("ToolCalls", Annotated[list[ToolCall], *ONE_COMPLAINT, Field(max_length=128)])


class ToolFields(Protocol):
    """The part of a chat request that is about tools."""

    @property
    def tools(self) -> Sequence[Tool] | None:
        """All that may be called."""

    @property
    def tool_choice(self) -> ToolChoice | None:
        """Whether, or which one."""

    @property
    def parallel_tool_calls(self) -> bool | None:
        """Several in one answer."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request's tools mean for its answer."""

    shown: Sequence[Mapping[str, Any]] = ()
    """To the model, by its template."""
    forced: Grammar | None = None
    """The answer is nothing but calls."""
    parses: bool = False
    """Calls are looked for in the answer."""
    parallel: bool = True
    """More than one call is passed on."""


def tool_use(fields: ToolFields, model: ServedModel, *, has_form: bool) -> ToolUse:
    """Raises InvalidRequest that names the field at fault. `has_form`: the answer's form was asked for otherwise."""
    tools, choice = fields.tools or (), fields.tool_choice
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: two have the same name", param="tools")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequest(f"tool_choice: no tool is called {choice.function.name[:64]!r}", param="tool_choice")
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice: there are no tools to choose from", param="tool_choice")
    if not tools or choice == "none":
        return ToolUse()
    if model.dialect.tools == "none":
        raise InvalidRequest(
            f"tools: {model.name} is not known to call tools in a format that Baton reads; --tool-parser names one",
            param="tools",
        )
    parallel = fields.parallel_tool_calls is not False
    shown = [tool.plain() for tool in tools]
    if choice in (None, "auto"):
        return ToolUse(shown, parses=not has_form, parallel=parallel)
    if has_form:
        raise InvalidRequest("tool_choice: an answer cannot be a call and have another form", param="tool_choice")
    wanted = [tool for tool in tools if choice == "required" or tool.function.name == choice.function.name]  # type: ignore[union-attr]
    schemas = [(tool.function.name, tool.function.parameters or {}) for tool in wanted]
    special = {mark: id for mark in model.dialect.marks(with_tools=True) if (id := model.special_id(mark)) is not None}
    forced = calls_grammar(model.dialect, schemas, special, parallel=parallel and choice == "required")
    return ToolUse(shown, forced, parses=True, parallel=parallel)
