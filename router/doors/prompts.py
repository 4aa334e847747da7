"""Every kind of prompt to checked token ids."""

import asyncio
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from engine.core.errors import InvalidRequest, NotFound
from engine.core.types import token_buffer
from router.text.model import ServedModel

MAX_MESSAGES = 4096
"""In one conversation."""
INLINE_CHARS = 4096
_MESSAGE_CHARS = 16
"""What a message costs to render, in characters of its text."""
_T = TypeVar("_T")


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit in the model's context."""


class UnknownModel(NotFound):
    """A model that is not served here."""


def check_model(model: ServedModel, name: str) -> None:
    """Raises UnknownModel unless `name` is the served model."""
    if name != model.name:
        raise UnknownModel(f"model {name[:128]!r} is not served here; {model.name!r} is", param="model")


def text_tokens(model: ServedModel, text: str, *, check: bool = True) -> "array[int]":
    """A plain text, framed as the checkpoint frames texts (BOS and the like).

    `check`: refuse what leaves the model no room to go on. What is far too long is refused either way.
    """
    _refuse_hopeless(model, text, "prompt")
    tokens = model.tokenizer.encode(text)
    return checked(model, tokens, "prompt") if check else tokens


async def tokens_of_text(model: ServedModel, text: str, *, check: bool = True) -> "array[int]":
    """Like text_tokens; a long text does not hold up the event loop."""
    return await _promptly(len(text), lambda: text_tokens(model, text, check=check))


async def tokens_of_prompts(
    model: ServedModel, prompts: "Sequence[str | Sequence[int] | array[int]]"
) -> "list[array[int]]":
    """A batch of texts, or of lists of token ids; buffers become the tokens themselves."""

    def tokenize() -> "list[array[int]]":
        return [_tokens_of(model, each) for each in prompts]

    return await _promptly(sum(len(each) for each in prompts if not isinstance(each, array)), tokenize)


def _tokens_of(model: ServedModel, prompt: "str | Sequence[int] | array[int]") -> "array[int]":
    if isinstance(prompt, array):
        return tokens_of_buffer(model, prompt)
    return text_tokens(model, prompt) if isinstance(prompt, str) else tokens_of_ids(model, prompt)


def tokens_of_ids(model: ServedModel, ids: Sequence[int]) -> "array[int]":
    """Token ids as the client gave them; nothing is added."""
    _refuse_long(model, len(ids), "prompt")
    try:
        tokens = token_buffer(ids)
    except OverflowError:  # beyond 32 bits
        tokens = token_buffer([-1])
    return tokens_of_buffer(model, tokens)


def tokens_of_buffer(model: ServedModel, tokens: "array[int]") -> "array[int]":
    """Like tokens_of_ids, of ids that lie in a buffer already: none of them is looked at one by one."""
    if tokens and not 0 <= _values(tokens).min() <= _values(tokens).max() < model.vocab_size:
        raise InvalidRequest(f"token ids must lie in [0, {model.vocab_size})", param="prompt")
    return checked(model, tokens, "prompt")


def _values(tokens: "array[int]") -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.frombuffer(tokens, dtype=np.int32)


def chat_tokens(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    check: bool = True,
) -> "array[int]":
    """A conversation through the checkpoint's chat template, which brings its own special tokens."""
    if model.template is None:
        raise InvalidRequest(f"model {model.name} has no chat template; use a plain prompt", param="messages")
    if not messages:
        raise InvalidRequest("messages: at least one is needed", param="messages")
    text = model.template.render(messages, arguments, tools)
    _refuse_hopeless(model, text, "messages")
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    return checked(model, tokens, "messages") if check else tokens


async def tokens_of_chat(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    check: bool = True,
) -> "array[int]":
    """Like chat_tokens; a long conversation does not hold up the event loop."""
    num_chars = sum(_MESSAGE_CHARS + len(message.get("content", "")) for message in messages)
    num_chars += INLINE_CHARS * (bool(tools) or any("tool_calls" in message for message in messages))
    return await _promptly(num_chars, lambda: chat_tokens(model, messages, arguments, tools, check=check))


async def _promptly(num_chars: int, tokenize: Callable[[], _T]) -> _T:
    """A few milliseconds' work is done here, more in a thread."""
    return tokenize() if num_chars <= INLINE_CHARS else await asyncio.to_thread(tokenize)


def _refuse_hopeless(model: ServedModel, text: str, param: str) -> None:
    """Do not tokenize what cannot fit."""
    if model.tokenizer.surely_longer_than(text, model.max_model_len):
        raise ContextLengthExceeded(
            f"{param}: {len(text)} characters cannot fit in the model's context of {model.max_model_len} tokens",
            param=param,
        )


def _refuse_long(model: ServedModel, num_tokens: int, param: str) -> None:
    if num_tokens >= model.max_model_len:
        raise ContextLengthExceeded(
            f"{param}: {num_tokens} tokens leave no room for an answer; "
            f"the model's context is {model.max_model_len} tokens, prompt and answer together",
            param=param,
        )


def checked(model: ServedModel, tokens: "array[int]", param: str) -> "array[int]":
    """`tokens`, when the model can go on from them."""
    if not tokens:
        raise InvalidRequest(f"{param}: it has no tokens", param=param)
    _refuse_long(model, len(tokens), param)
    if _values(tokens).max() >= model.vocab_size:  # a tokenizer that knows more tokens than the model
        raise InvalidRequest(f"{param}: it holds a token that the model does not have", param=param)
    return tokens


def answer_room(model: ServedModel, num_prompt: int, max_tokens: int | None, default: int | None) -> int:
    """New tokens that a request may ask for; `default` None is the rest of the context."""
    room = model.max_model_len - num_prompt
    if max_tokens is None:
        return room if default is None else min(default, room)
    if max_tokens > room:
        raise ContextLengthExceeded(
            f"{num_prompt} prompt tokens and max_tokens {max_tokens} are more than "
            f"the model's context of {model.max_model_len} tokens",
            param="max_tokens",
        )
    return max_tokens
