"""From checked choices to an HTTP response, whole or streamed; a client that leaves ends its work."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from engine.core.errors import BatonError, Cancelled
from router.api import Generator
from router.doors.config import DoorConfig
from router.doors.session import Answer, Choice, collect, fit_for_logs, run
from router.http.errors import baton_error_object
from router.text.model import ServedModel
from router.text.output import TextDelta

_T = TypeVar("_T")
Json = dict[str, Any]
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Door:
    """What every endpoint works with."""

    generator: Generator
    model: ServedModel
    config: DoorConfig


class Shape(Protocol):
    """How one endpoint spells answers."""

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The body of a response that is not streamed."""

    def chunk(self, index: int, delta: TextDelta) -> Json | None:
        """One event of a stream; None when there is nothing to say yet."""

    def usage_chunk(self) -> Json:
        """The event after the last delta, for clients that asked for usage."""


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, the events' generator is closed before the response is over."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events; a disconnect cancels this."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def respond(
    request: Request, door: Door, choices: Sequence[Choice], shape: Shape, *, stream: bool, include_usage: bool
) -> Response:
    """Run the choices and answer. An error before the first token is raised, so that it gets its own status."""
    headers = {"x-request-id": choices[0].call.request_id.rpartition("-")[0]}
    if not stream:
        answers = await _while_connected(request, collect(door.generator, choices))
        return JSONResponse(shape.whole(answers), headers=headers | timing_headers(answers[0]))
    events = run(door.generator, choices)
    try:
        first = await _while_connected(request, _next(events))
    except BaseException:  # a cancelled handler too: nobody else would close it
        await events.aclose()
        raise
    return EventStream(_server_sent(first, events, shape, include_usage), headers)


async def _server_sent(
    first: tuple[int, TextDelta], rest: AsyncGenerator[tuple[int, TextDelta], None], shape: Shape, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        try:
            async for index, delta in _chain(first, rest):
                if (body := shape.chunk(index, delta)) is not None:
                    yield _event(body)
        except BatonError as error:  # too late for a status: an error event, and no [DONE]
            yield _event(baton_error_object(error))
            return
        if include_usage:
            yield _event(shape.usage_chunk())
        yield b"data: [DONE]\n\n"


async def _chain(first: _T, rest: AsyncIterator[_T]) -> AsyncIterator[_T]:
    yield first
    async for item in rest:
        yield item


async def _next(events: AsyncGenerator[_T, None]) -> _T:
    return await anext(events)


def _event(value: Json) -> bytes:
    return b"data: " + _encode(value).encode() + b"\n\n"


async def _while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled when the client leaves. Raises Cancelled then."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client closed the connection")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def timing_headers(answer: Answer) -> dict[str, str]:
    """Where the time went, for people; milliseconds."""
    headers = {"x-baton-cached-tokens": str(answer.cached_tokens)}
    timing = answer.timing
    if timing is None:
        return headers
    parts = {"queue": timing.queue_s, "prefill": timing.prefill_s, "transfer": timing.transfer_s, "ttft": timing.ttft_s}
    workers = {"x-baton-prefill-worker": timing.prefill_worker, "x-baton-decode-worker": timing.decode_worker}
    return headers | workers | {f"x-baton-{part}-ms": f"{seconds * 1e3:.1f}" for part, seconds in parts.items()}


def request_id_of(request: Request, prefix: str) -> str:
    """The client's x-request-id when it is fit for a log line, else a fresh one; the same for one request each time."""
    given = request.headers.get("x-request-id", "")
    id: str = request.scope.setdefault("baton_id", given if fit_for_logs(given) else f"{prefix}-{uuid4().hex}")
    return id
