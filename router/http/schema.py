"""What OpenAI clients may send. Unknown arguments are refused by name: none of them is silently without effect."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)
from typing_extensions import TypeAliasType

from engine.core.errors import InvalidRequest
from router.doors.prompts import MAX_MESSAGES
from router.doors.sampling import ONE_COMPLAINT, at_most
from router.doors.structured import StructuredFields
from router.http.tools import ToolCalls, ToolChoice, Tools

TokenIds = TypeAliasType("TokenIds", Annotated[list[StrictInt], *ONE_COMPLAINT])
TokenIdLists = TypeAliasType("TokenIdLists", Annotated[list[TokenIds], *ONE_COMPLAINT, Field(max_length=2048)])
Texts = TypeAliasType("Texts", Annotated[list[StrictStr], *ONE_COMPLAINT, Field(max_length=2048)])


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None


class OpenAIRequest(StructuredFields):
    """What both generating endpoints share."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),  # of no tools
        "parallel_tool_calls": (True, False),
        "modalities": (["text"],),
        "use_beam_search": (False,),
        "length_penalty": (1.0,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    }

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout_s: float | None = Field(default=None, gt=0.0)
    """Baton's own: the request ends with an error when it takes longer."""
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)
    """Baton's own: smaller runs first."""

    # Bookkeeping of OpenAI's platform. Clients send it by default and it has no effect on the answer.
    user: str | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(at_most(16))] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
        return self


class CompletionRequest(OpenAIRequest):
    """POST /v1/completions."""

    prompt: Annotated[TokenIds | TokenIdLists | Texts | str, Field(union_mode="left_to_right")]
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _only_what_is_served(self) -> Self:
        if self.suffix:
            raise InvalidRequest("suffix is not supported: the model completes, it does not insert", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of is only supported when it equals n", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens 0 asks for nothing unless echo is true", param="max_tokens")
        return self


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: str
    text: str = ""

    @field_validator("type")
    @classmethod
    def _only_text(cls, value: str) -> str:
        if value != "text":
            raise ValueError(f"content parts of type {value[:64]!r} are not served, only 'text'")
        return value


TextParts = TypeAliasType("TextParts", Annotated[list[TextPart], *ONE_COMPLAINT, Field(max_length=64)])


class ChatMessage(BaseModel):
    """One message. Fields of answers that carry nothing (a null refusal) may come back as they were sent."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | TextParts | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value:
                raise ValueError(f"{name[:64]} is not supported in a message")
        return self

    def plain(self) -> dict[str, Any]:
        """The message as chat templates want it; parts of text are one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        optional: dict[str, Any] = {"name": self.name, "reasoning_content": self.reasoning_content}
        optional["tool_calls"] = [call.plain() for call in self.tool_calls] if self.tool_calls else None
        optional["tool_call_id"] = self.tool_call_id
        return {"role": self.role, "content": content} | {k: v for k, v in optional.items() if v is not None}


Messages = TypeAliasType("Messages", Annotated[list[ChatMessage], *ONE_COMPLAINT, Field(max_length=MAX_MESSAGES)])


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(at_most(64))] | None = None
    """Baton's own: switches of the model's chat template, such as enable_thinking."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.max_completion_tokens is not None:
            if self.max_tokens is not None and self.max_tokens != self.max_completion_tokens:
                raise InvalidRequest("max_tokens and max_completion_tokens differ", param="max_tokens")
            self.max_tokens = self.max_completion_tokens
        return self


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or a conversation through the chat template."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("exactly one of prompt and messages is needed")
        return self
