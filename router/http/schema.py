"""What OpenAI clients may send. Unknown arguments are refused by name: none of them is silently without effect."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, Strict, StrictInt, StrictStr, model_validator
from typing_extensions import TypeAliasType

from router.doors.sampling import SamplingFields

# Of a million wrong items one is complained of. Types with a name do not inherit the model's strictness.
_ONE_COMPLAINT = (FailFast(), Strict())
TokenIds = TypeAliasType("TokenIds", Annotated[list[StrictInt], *_ONE_COMPLAINT])
TokenIdLists = TypeAliasType("TokenIdLists", Annotated[list[TokenIds], *_ONE_COMPLAINT])
Texts = TypeAliasType("Texts", Annotated[list[StrictStr], *_ONE_COMPLAINT])


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None


class OpenAIRequest(SamplingFields):
    """What both generating endpoints share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout_s: float | None = Field(default=None, gt=0.0)
    """Baton's own: the request ends with an error when it takes longer."""
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)
    """Baton's own: smaller runs first."""

    # Bookkeeping of OpenAI's platform. Clients send it by default and it has no effect on the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


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
            raise ValueError("suffix is not supported: the served model completes, it does not insert")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is only supported when it equals n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 asks for nothing unless echo is true")
        return self


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message. Fields of answers that carry nothing (a null refusal) may come back as they were sent."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value:
                raise ValueError(f"{name} is not supported in a message")
        return self

    def plain(self) -> dict[str, str]:
        """The message as chat templates want it; parts of text are one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        optional = {"name": self.name, "reasoning_content": self.reasoning_content}
        return {"role": self.role, "content": content} | {k: v for k, v in optional.items() if v is not None}


class PlainText(BaseModel):
    """The only response format that is served."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast()]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: PlainText | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Baton's own: switches of the model's chat template, such as enable_thinking."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.max_completion_tokens is not None:
            if self.max_tokens is not None and self.max_tokens != self.max_completion_tokens:
                raise ValueError("max_tokens and max_completion_tokens differ")
            self.max_tokens = self.max_completion_tokens
        return self


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or a conversation through the chat template."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        return self
