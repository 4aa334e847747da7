"""What clients of OpenAI's Responses API may send, and the same as a chat request. Nothing is kept between requests."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypeAliasType

from engine.core.errors import InvalidRequest
from router.doors.prompts import MAX_MESSAGES
from router.doors.sampling import ONE_COMPLAINT, at_most
from router.doors.structured import JsonSchemaFormat, ResponseFormat
from router.http.responses_input import InputItem, messages_of
from router.http.schema import ChatRequest, OpenAIRequest
from router.http.tools import Function, FunctionName, NamedTool, Tool, ToolName

InputItems = TypeAliasType("InputItems", Annotated[list[InputItem], *ONE_COMPLAINT, Field(max_length=MAX_MESSAGES)])
_KEPT = "nothing is kept here: leave it out, and send the whole conversation as input"
_OTHER_WORDS = {"max_tokens": "max_output_tokens", "response_format": "text.format", "n": "a request for each answer"}


class FunctionTool(BaseModel):
    """A function that may be called. Tools that run on OpenAI's servers are not here."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_a_function(self) -> Self:
        if self.type != "function":
            raise ValueError(f"tools of type {self.type[:64]!r} are not served, only functions of the client's own")
        if self.name is None:
            raise ValueError("a function has a name")
        for name, value in (self.model_extra or {}).items():
            if value:
                raise ValueError(f"{name[:64]} is not supported in a tool")
        return self

    def as_chat(self) -> Tool:
        """As chat requests have it."""
        assert self.name is not None, "it was checked"
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class ChosenFunction(BaseModel):
    """The function that is to be called."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: str


class TextFormat(BaseModel):
    """What the text must look like."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema is needed with type json_schema, and only there")
        return self

    def as_chat(self) -> ResponseFormat:
        """As chat requests have it."""
        if self.schema_ is None:
            return ResponseFormat(type=self.type)
        schema = JsonSchemaFormat.model_validate({"name": self.name, "schema": self.schema_, "strict": self.strict})
        return ResponseFormat(type="json_schema", json_schema=schema)


class TextConfig(BaseModel):
    """Of the words of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: TextFormat | None = None
    verbosity: None = None


class ResponseStreamOptions(BaseModel):
    """Obfuscation pads events against watchers of their sizes; there is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_obfuscation: Literal[False] | None = None


FunctionTools = TypeAliasType("FunctionTools", Annotated[list[FunctionTool], *ONE_COMPLAINT, Field(max_length=128)])


class ResponsesRequest(OpenAIRequest):
    """POST /v1/responses."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "truncation": ("disabled",),
        # Reasoning items have their text in the open, so nothing needs to be carried encrypted.
        "include": ([], ["reasoning.encrypted_content"]),
        "top_logprobs": (0,),
        "reasoning": ({},),
    }

    input: str | InputItems
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextConfig | None = None
    tools: FunctionTools | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    stream_options: ResponseStreamOptions | None = None  # type: ignore[assignment]
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(at_most(64))] | None = None
    """Baton's own: switches of the model's chat template, such as enable_thinking."""

    @field_validator("input")
    @classmethod
    def _says_something(cls, value: str | list[InputItem]) -> str | list[InputItem]:
        if not value:
            raise ValueError("at least one message is needed")
        return value

    @model_validator(mode="after")
    def _keeps_nothing(self) -> Self:
        for name in ("store", "previous_response_id", "conversation", "background"):
            if getattr(self, name):
                raise InvalidRequest(f"{name}: {_KEPT}", param=name)
        for name, word in _OTHER_WORDS.items():
            value = getattr(self, name)
            if value is not None and (name, value) != ("n", 1):
                raise InvalidRequest(f"{name}: not of this API; it has {word}", param=name)
        return self

    def as_chat(self) -> ChatRequest:
        """The same request for the other endpoint. Raises pydantic's ValidationError for what that one refuses."""
        shared = {name: getattr(self, name) for name in OpenAIRequest.model_fields}
        del shared["stream_options"]
        chosen = self.tool_choice
        if isinstance(chosen, ChosenFunction):
            named = NamedTool(type="function", function=FunctionName(name=chosen.name))
        return ChatRequest.model_validate(
            {name: value for name, value in shared.items() if value is not None}
            | {
                "messages": messages_of(self.input, self.instructions),
                "max_tokens": self.max_output_tokens,
                "response_format": self.text.format.as_chat() if self.text and self.text.format else None,
                "tools": [tool.as_chat() for tool in self.tools] if self.tools is not None else None,
                "tool_choice": named if isinstance(chosen, ChosenFunction) else chosen,
                "parallel_tool_calls": self.parallel_tool_calls,
                "chat_template_kwargs": self.chat_template_kwargs,
            }
        )
