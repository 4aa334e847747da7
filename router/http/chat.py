"""POST /v1/chat/completions."""

import time
from collections.abc import Sequence

from fastapi import Request, Response

from router.doors.prompts import check_model, tokens_of_chat
from router.doors.session import Answer, Ask, choices_of
from router.http.body import read_body
from router.http.logprobs import Json, chat_logprobs
from router.http.respond import Door, request_id_of, respond
from router.http.schema import ChatRequest
from router.http.usage import UsageCount
from router.text.output import TextDelta


async def chat(request: Request, door: Door) -> Response:
    """The assistant's next message."""
    body = await read_body(request, ChatRequest)
    check_model(door.model, body.model)
    messages = [message.plain() for message in body.messages]
    tokens = await tokens_of_chat(door.model, messages, body.chat_template_kwargs)
    ask = Ask(
        request_id=request_id_of(request, "chatcmpl"),
        prompts=[tokens],
        fields=body,
        default_max_tokens=None,
        starts_text=True,
        timeout_s=body.timeout_s,
        priority=body.priority or 0,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    choices = choices_of(ask, door.model, door.config)
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    shape = ChatShape(ask, body, null_usage=include_usage)
    return await respond(request, door, choices, shape, stream=bool(body.stream), include_usage=include_usage)


class ChatShape:
    """Bodies and events of one chat request."""

    def __init__(self, ask: Ask, body: ChatRequest, *, null_usage: bool) -> None:
        """`null_usage`: each event says that its usage comes later."""
        self._head = {"id": ask.request_id, "created": int(time.time()), "model": body.model}
        self._usage = UsageCount(ask.prompts, body.n or 1)
        self._tail = {"usage": None} if null_usage else {}
        self._wants_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The body of a response that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            message = {"role": "assistant", "content": "".join(answer.texts), "refusal": None}
            choices.append({"index": index, "message": message} | self._ending(index, answer.as_delta()))
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage.body()}

    def chunk(self, index: int, delta: TextDelta) -> Json:
        """One event of a stream; the first of each answer says whose message it is."""
        message = {"content": delta.text}
        if index not in self._begun:
            self._begun.add(index)
            message = {"role": "assistant", **message}
        choice = {"index": index, "delta": message} | self._ending(index, delta)
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | self._tail

    def usage_chunk(self) -> Json:
        """The event after the last delta."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage.body()}

    def _ending(self, index: int, delta: TextDelta) -> Json:
        self._usage.add(index, len(delta.tokens), delta.cached_tokens)
        logprobs = chat_logprobs(delta.logprobs) if self._wants_logprobs else None
        return {"logprobs": logprobs, "finish_reason": delta.finish}
