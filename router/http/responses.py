"""POST /v1/responses: the chat path in the words of OpenAI's Responses API. Nothing is kept between requests."""

import time
from collections.abc import Sequence

import msgspec
from fastapi import Request, Response
from pydantic import ValidationError

from engine.core.errors import BatonError, Code, InvalidRequest
from engine.core.types import FinishReason
from router.doors.sampling import invalid
from router.doors.session import Answer
from router.http.body import read_body
from router.http.chat import Turn, turn_of
from router.http.errors import baton_error_object
from router.http.respond import Door, respond
from router.http.responses_items import ItemBuilder, Json
from router.http.responses_schema import ResponsesRequest
from router.http.usage import UsageCount
from router.text.output import TextDelta

_encode = msgspec.json.Encoder().encode
_PARAMS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text"}
"""What the chat path complains of, in this API's words."""


async def create_response(request: Request, door: Door) -> Response:
    """The assistant's next turn."""
    body = await read_body(request, ResponsesRequest)
    try:
        turn = await turn_of(request, door, body.as_chat(), "resp")
    except ValidationError as error:
        raise _in_own_words(invalid(error)) from error
    except InvalidRequest as error:
        raise _in_own_words(error) from error
    shape = ResponseShape(turn, body)
    return await respond(request, door, turn.choices, shape.whole, shape if body.stream else None)


def _in_own_words(error: InvalidRequest) -> InvalidRequest:
    if error.param not in _PARAMS:
        return error
    param = _PARAMS[error.param]
    message = error.message.replace(f"{error.param}:", f"{param}:").replace("max_tokens", "max_output_tokens")
    return type(error)(message, param=param)


class ResponseShape:
    """The body or the events of one response; a Spelling."""

    def __init__(self, turn: Turn, body: ResponsesRequest) -> None:
        self._head = _head(turn.ask.request_id, body)
        self._builder = ItemBuilder(turn.parser(), parallel=turn.parallel, short_ids=turn.short_ids)
        self._usage = UsageCount(turn.ask.prompts, 1)
        self._num_events = 0
        self._finish: FinishReason | None = None

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The body of a response that is not streamed: put together as its events would be."""
        (answer,) = answers
        self._usage.add(0, len(answer.tokens), answer.cached_tokens)
        for text, count in zip(answer.texts, answer.counts, strict=True):
            self._builder.push(text, count)
        self._finish = answer.finish
        self._builder.finish(whole=self._is_whole)
        return self._ended()

    def part(self, _index: int, delta: TextDelta) -> bytes:
        """See Spelling."""
        events: list[Json] = []
        if not self._num_events:
            begun = self._head | {"status": "in_progress", "output": [], "usage": None}
            events += [{"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")]
        self._usage.add(0, len(delta.tokens), delta.cached_tokens)
        events += self._builder.push(delta.text, len(delta.tokens))
        if delta.finish is not None:
            self._finish = delta.finish
            events += self._builder.finish(whole=self._is_whole)
        return self._sent(events)

    def end(self) -> bytes:
        """See Spelling. There is no [DONE] in this API."""
        response = self._ended()
        return self._sent([{"type": f"response.{response['status']}", "response": response}])

    def failed(self, error: BatonError) -> bytes:
        """See Spelling."""
        said = baton_error_object(error)["error"]
        assert isinstance(said, dict)
        code = "rate_limit_exceeded" if error.code is Code.RESOURCE_EXHAUSTED else "server_error"
        why = {"status": "failed", "error": {"code": code, "message": said["message"]}}
        response = self._head | why | {"output": self._builder.items, "usage": self._usage_body()}
        return self._sent([{"type": "response.failed", "response": response}])

    @property
    def _is_whole(self) -> bool:
        return self._finish is FinishReason.STOP

    def _ended(self) -> Json:
        status: Json = {"status": "completed"}
        if not self._is_whole:
            status = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return self._head | status | {"output": self._builder.items, "usage": self._usage_body()}

    def _usage_body(self) -> Json:
        used = self._usage.body()
        return {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._builder.reasoning_tokens},
            "total_tokens": used["total_tokens"],
        }

    def _sent(self, events: Sequence[Json]) -> bytes:
        parts = []
        for event in events:
            data = _encode(event | {"sequence_number": self._num_events})
            parts.append(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), data))
            self._num_events += 1
        return b"".join(parts)


def _head(request_id: str, body: ResponsesRequest) -> Json:
    """What a response says of its request."""
    said = body.model_dump(mode="json", include={"text", "tools", "tool_choice"}, by_alias=True, exclude_none=True)
    return {
        "id": request_id,
        "object": "response",
        "created_at": int(time.time()),
        "model": body.model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": said.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": said.get("tool_choice", "auto"),
        "tools": said.get("tools", []),
        "top_p": body.top_p,
        "truncation": "disabled",
    }
