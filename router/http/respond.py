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
from router.api import Generator, Timing
from router.doors.arrival import SLO_HEADER, slo_of, timing_entries
from router.doors.config import DoorConfig
from router.doors.gateway import Arrival, Gateway
from router.doors.session import Answer, Choice, collect, fit_for_logs
from router.http.body import ARRIVED
from router.http.caller import caller_of
from router.http.errors import baton_error_object
from router.http.rate_headers import rate_headers
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
    gateway: Gateway


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
    request_id = choices[0].call.request_id.rpartition("-")[0]
    headers = {"x-request-id": request_id}
    visit = door.gateway.visit(_arrival(request), request_id, choices)
    events = visit.run(door.generator)
    if not stream:
        answers = await _while_connected(request, collect(events, visit.choices))
        headers |= rate_headers(visit.quotas) | timing_headers(answers[0].cached_tokens, answers[0].timing, whole=True)
        return JSONResponse(shape.whole(answers), headers=headers)
    try:
        first = await _while_connected(request, _next(events))
    except BaseException:  # a cancelled handler too: nobody else would close it
        await events.aclose()
        raise
    headers |= rate_headers(visit.quotas) | timing_headers(first[1].cached_tokens or 0, first[1].timing, whole=False)
    return EventStream(_server_sent(first, events, shape, include_usage), headers)


def _arrival(request: Request) -> Arrival:
    """Who sent it and what its headers say."""
    trace = {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}
    slo_s = slo_of(request.headers.get(SLO_HEADER))
    return Arrival(caller_of(request), request.scope.get(ARRIVED), slo_s, trace)


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


def timing_headers(cached_tokens: int, timing: Timing | None, *, whole: bool) -> dict[str, str]:
    """Who did the work, and where the time went. A stream's headers (not `whole`) go out with its first token."""
    headers = {"x-baton-cached-tokens": str(cached_tokens)}
    return headers if timing is None else headers | dict(timing_entries(timing, whole=whole))


def request_id_of(request: Request, prefix: str) -> str:
    """The client's x-request-id when it is fit for a log line, else a fresh one; the same for one request each time."""
    given = request.headers.get("x-request-id", "")
    id: str = request.scope.setdefault("baton_id", given if fit_for_logs(given) else f"{prefix}-{uuid4().hex}")
    return id
