"""From checked choices to an HTTP response, whole or streamed; a client that leaves ends its work."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from engine.core.errors import BatonError
from router.api import Generator, Timing
from router.doors.arrival import SLO_HEADER, slo_of, timing_entries
from router.doors.config import DoorConfig
from router.doors.gateway import Arrival, Gateway
from router.doors.session import Answer, Choice, collect, fit_for_logs
from router.http.body import ARRIVED
from router.http.caller import caller_of
from router.http.errors import baton_error_object
from router.http.leaving import Leaving
from router.http.rate_headers import rate_headers
from router.text.model import ServedModel
from router.text.output import TextDelta

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Door:
    """What every endpoint works with."""

    generator: Generator
    model: ServedModel
    config: DoorConfig
    gateway: Gateway


class Spelling(Protocol):
    """How one endpoint spells a stream; each answer is the bytes of some events, or none."""

    def part(self, index: int, delta: TextDelta) -> bytes:
        """What one delta adds."""

    def end(self) -> bytes:
        """What comes after the last one."""

    def failed(self, error: BatonError) -> bytes:
        """What comes instead when the answer breaks off: too late for a status."""


class Chunks(Protocol):
    """Of an endpoint whose events are JSON objects without a name."""

    def chunk(self, index: int, delta: TextDelta) -> Json | None:
        """One event of a stream; None when there is nothing to say yet."""

    def usage_chunk(self) -> Json:
        """The event after the last delta, for clients that asked for usage."""


class ChunkEvents:
    """`chunks` as a Spelling. An error is an event, and then there is no [DONE]."""

    def __init__(self, chunks: Chunks, *, include_usage: bool) -> None:
        self._chunks = chunks
        self._include_usage = include_usage

    def part(self, index: int, delta: TextDelta) -> bytes:
        """See Spelling."""
        body = self._chunks.chunk(index, delta)
        return b"" if body is None else _event(body)

    def end(self) -> bytes:
        """See Spelling."""
        return (_event(self._chunks.usage_chunk()) if self._include_usage else b"") + _DONE

    def failed(self, error: BatonError) -> bytes:
        """See Spelling."""
        return _event(baton_error_object(error))


class EventStream(Response):
    """Server-sent events. However it ends, the events' generator is closed before the response is over."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[tuple[bytes, bool], None], headers: Mapping[str, str], leaving: Leaving
    ) -> None:
        """`events`: each with whether more will come."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the last one, or until the client leaves."""
        try:
            async with aclosing(self._events):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for event, more in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": more})
        except asyncio.CancelledError:
            if not self._leaving.is_why():
                raise
        finally:
            self._leaving.close()


async def respond(
    request: Request,
    door: Door,
    choices: Sequence[Choice],
    whole: Callable[[Sequence[Answer]], Json],
    streamed: Spelling | None,
) -> Response:
    """Run the choices and answer: `whole` makes the body, or the answer is `streamed`.

    An error before the first token is raised, so that it gets its own status.
    """
    request_id = choices[0].call.request_id.rpartition("-")[0]
    headers = {"x-request-id": request_id}
    visit = door.gateway.visit(_arrival(request), request_id, choices)
    events = visit.run(door.generator)
    leaving = Leaving(request)
    try:
        if streamed is None:
            answers = await leaving.result(collect(events, visit.choices))
            leaving.close()
            timing = timing_headers(answers[0].cached_tokens, answers[0].timing, whole=True)
            return JSONResponse(whole(answers), headers=headers | rate_headers(visit.quotas) | timing)
        first = await leaving.result(_next(events))
    except BaseException:  # a cancelled handler too: nobody else would close them
        leaving.close()
        await events.aclose()
        raise
    headers |= rate_headers(visit.quotas) | timing_headers(first[1].cached_tokens or 0, first[1].timing, whole=False)
    return EventStream(_server_sent(first, events, streamed), headers, leaving)


def _arrival(request: Request) -> Arrival:
    """Who sent it and what its headers say."""
    trace = {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}
    slo_s = slo_of(request.headers.get(SLO_HEADER))
    return Arrival(caller_of(request), request.scope.get(ARRIVED), slo_s, trace)


async def _server_sent(
    first: tuple[int, TextDelta], rest: AsyncGenerator[tuple[int, TextDelta], None], spelling: Spelling
) -> AsyncGenerator[tuple[bytes, bool], None]:
    async with aclosing(rest):
        try:
            if event := spelling.part(*first):
                yield event, True
            async for index, delta in rest:
                if event := spelling.part(index, delta):
                    yield event, True
        except BatonError as error:
            yield spelling.failed(error), False
            return
        yield spelling.end(), False


async def _next(events: AsyncGenerator[tuple[int, TextDelta], None]) -> tuple[int, TextDelta]:
    return await anext(events)


def _event(value: Json) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def timing_headers(cached_tokens: int, timing: Timing | None, *, whole: bool) -> dict[str, str]:
    """Who did the work, and where the time went. A stream's headers (not `whole`) go out with its first token."""
    headers = {"x-baton-cached-tokens": str(cached_tokens)}
    return headers if timing is None else headers | dict(timing_entries(timing, whole=whole))


def request_id_of(request: Request, prefix: str) -> str:
    """The client's x-request-id when it is fit for a log line, else a fresh one; the same for one request each time."""
    given = request.headers.get("x-request-id", "")
    id: str = request.scope.setdefault("baton_id", given if fit_for_logs(given) else f"{prefix}-{uuid4().hex}")
    return id
