"""POST /v1/chat/completions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from engine.core.types import FinishReason
from router.dialect.dialect import AnswerParser
from router.dialect.reasoning import OPEN
from router.doors.prompts import check_model, tokens_of_chat
from router.doors.session import Answer, Ask, Choice, choices_of
from router.doors.structured import checked_grammar
from router.http.body import read_body
from router.http.caller import caller_of
from router.http.logprobs import Json, chat_logprobs
from router.http.message import MessageBuilder
from router.http.respond import ChunkEvents, Door, request_id_of, respond
from router.http.schema import ChatRequest
from router.http.tools import tool_use
from router.http.usage import UsageCount
from router.text.output import TextDelta


@dataclass(frozen=True, slots=True)
class Turn:
    """What an assistant is to say next, checked: `choices` can run."""

    ask: Ask
    choices: list[Choice]
    parser: Callable[[], AnswerParser]
    """A new one for each answer."""
    parallel: bool
    """Several calls in one answer may be shown."""
    short_ids: bool
    """Ids of calls as Mistral's templates want them."""


async def turn_of(request: Request, door: Door, body: ChatRequest, id_prefix: str) -> Turn:
    """The conversation through template, tools and grammar. Raises InvalidRequest, UnknownModel, Overloaded."""
    model = door.model
    check_model(model, body.model)
    asked = body.grammar()
    use = tool_use(body, model, has_form=asked is not None)
    if use.forced is not None:
        asked = use.forced, "tools"
    messages = [message.plain() for message in body.messages]
    tokens = await tokens_of_chat(model, messages, body.chat_template_kwargs, use.shown)
    ask = Ask(
        request_id=request_id_of(request, id_prefix),
        prompts=[tokens],
        fields=body,
        default_max_tokens=None,
        starts_text=True,
        timeout_s=body.timeout_s,
        priority=body.priority or 0,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await checked_grammar(model, asked, door.gateway.costly(caller_of(request))),
        marks=model.dialect.marks(with_tools=use.parses),
    )
    choices = choices_of(ask, model, door.config)
    inside = model.dialect.thinks and model.ends_with(tokens, OPEN)

    def parser() -> AnswerParser:
        # An answer that must have a form begins with it, whatever the prompt ends with: there are no thoughts in it.
        return model.dialect.parser(with_tools=use.parses, thoughts=asked is None, inside_thoughts=inside)

    return Turn(ask, choices, parser, use.parallel, model.dialect.tools == "mistral")


async def chat(request: Request, door: Door) -> Response:
    """The assistant's next message."""
    body = await read_body(request, ChatRequest)
    turn = await turn_of(request, door, body, "chatcmpl")

    def message() -> MessageBuilder:
        return MessageBuilder(turn.parser(), parallel=turn.parallel, short_ids=turn.short_ids)

    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    shape = ChatShape(turn.ask, body, message, null_usage=include_usage)
    streamed = ChunkEvents(shape, include_usage=include_usage) if body.stream else None
    return await respond(request, door, turn.choices, shape.whole, streamed)


class ChatShape:
    """Bodies and events of one chat request."""

    def __init__(self, ask: Ask, body: ChatRequest, message: Callable[[], MessageBuilder], *, null_usage: bool) -> None:
        """`message` makes the builder of one answer. `null_usage`: each event says that its usage comes later."""
        self._head = {"id": ask.request_id, "created": int(time.time()), "model": body.model}
        self._usage = UsageCount(ask.prompts, body.n or 1)
        self._tail = {"usage": None} if null_usage else {}
        self._wants_logprobs = bool(body.logprobs)
        self._message = message
        self._begun: dict[int, MessageBuilder] = {}

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The body of a response that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            delta = answer.as_delta()
            builder = self._message()
            added = builder.push(delta.text, last=True)
            for call in added.get("tool_calls", ()):
                del call["index"]
            content = added.pop("content", None if builder.calls else "")
            message = {"role": "assistant", "content": content, "refusal": None} | added
            choices.append({"index": index, "message": message} | self._ending(index, delta, builder))
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage.body()}

    def chunk(self, index: int, delta: TextDelta) -> Json | None:
        """One event of a stream, None when all is held back; the first of each answer says whose message it is."""
        builder = self._begun.get(index)
        added: Json = {}
        if builder is None:
            builder = self._begun[index] = self._message()
            added = {"role": "assistant", "content": ""}
        added |= builder.push(delta.text, last=delta.finish is not None)
        choice = {"index": index, "delta": added} | self._ending(index, delta, builder)
        if not added and delta.finish is None and not delta.logprobs:
            return None
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | self._tail

    def usage_chunk(self) -> Json:
        """The event after the last delta."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage.body()}

    def _ending(self, index: int, delta: TextDelta, builder: MessageBuilder) -> Json:
        self._usage.add(index, len(delta.tokens), delta.cached_tokens)
        logprobs = chat_logprobs(delta.logprobs) if self._wants_logprobs else None
        called = builder.calls and delta.finish is FinishReason.STOP
        return {"logprobs": logprobs, "finish_reason": "tool_calls" if called else delta.finish}
