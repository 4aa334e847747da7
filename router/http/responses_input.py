"""The items of a Responses request's input as the messages of a chat: a turn of several items is one message."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator
from typing_extensions import TypeAliasType

from router.doors.sampling import ONE_COMPLAINT
from router.http.schema import ChatMessage
from router.http.tools import CalledFunction

_TEXTS = ("input_text", "output_text", "reasoning_text", "summary_text", "text")
_ROLES = ("user", "assistant", "system", "developer")


class ItemPart(BaseModel):
    """One part of an item's content."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str
    text: str = ""

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        if self.type not in _TEXTS:
            raise ValueError(f"content parts of type {self.type[:64]!r} are not served, only text")
        return self


ItemParts = TypeAliasType("ItemParts", Annotated[list[ItemPart], *ONE_COMPLAINT, Field(max_length=64)])


class InputItem(BaseModel):
    """A message, a call, a call's output or thoughts, also as an answer had it: what it says beyond that is let be."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str | None = None
    role: str | None = None
    content: StrictStr | ItemParts | None = None
    call_id: str | None = Field(default=None, max_length=128)
    name: str | None = Field(default=None, max_length=128)
    arguments: str | None = None
    output: StrictStr | ItemParts | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        match self.type or "message":
            case "message":
                if self.role not in _ROLES or self.content is None:
                    raise ValueError(f"a message has content and a role, one of {', '.join(_ROLES)}")
            case "function_call":
                if self.call_id is None or self.name is None or self.arguments is None:
                    raise ValueError("a function_call has call_id, name and arguments")
                CalledFunction(name=self.name, arguments=self.arguments)
            case "function_call_output":
                if self.call_id is None or self.output is None:
                    raise ValueError("a function_call_output has call_id and output")
            case "reasoning":
                pass
            case other:
                raise ValueError(f"items of type {other[:64]!r} are not served")
        return self


def _text(content: str | Sequence[ItemPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def messages_of(given: str | Sequence[InputItem], instructions: str | None) -> list[ChatMessage]:
    """The conversation. Instructions are its system message, before one that the input begins with."""
    messages: list[dict[str, Any]] = []
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for item in given:
            _add(messages, item)
    if instructions:
        if messages and messages[0]["role"] == "system":  # templates know one system message
            messages[0]["content"] = f"{instructions}\n\n{messages[0]['content']}"
        else:
            messages.insert(0, {"role": "system", "content": instructions})
    return [ChatMessage.model_validate(message) for message in messages]


def _add(messages: list[dict[str, Any]], item: InputItem) -> None:
    match item.type or "message":
        case "message" if item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
        case "message":
            turn = _turn(messages)
            turn["content"] = (turn["content"] or "") + _text(item.content)
        case "reasoning":
            if thoughts := _text(item.content):
                turn = _turn(messages)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + thoughts
        case "function_call":
            function = {"name": item.name, "arguments": item.arguments}
            calls = _turn(messages).setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that is being put together."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]
