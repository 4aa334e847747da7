"""Limits on request bodies that hold while they are read, not after."""

import asyncio
from functools import partial

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DRAIN = 4
"""A client that is still sending gets its answer only if it is listened to; up to so many times the limit."""


class BodyLimit:
    """Refuses a body over `max_bytes` (413), never holding more than that of it, and one that does not end (408)."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its body bounded."""
        if scope["type"] == "http":
            receive = _Body(receive, self._max_bytes, asyncio.get_running_loop().time() + self._timeout_s).receive
        await self._app(scope, receive, send)


class _Body:
    """One request's body while it is read. What comes after its end is passed on as it is."""

    def __init__(self, receive: Receive, max_bytes: int, until_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._until_s = until_s
        self._seen = 0
        self._more = True

    async def receive(self) -> Message:
        """The next message. Raises HTTPException when the body is too large or too slow."""
        if not self._more:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until_s):
                message = await self._next()
                if self._seen > self._max_bytes:
                    await self._drain()
        except TimeoutError:
            raise _refused(408, "the body took too long to come") from None
        if self._seen > self._max_bytes:
            raise _refused(413, f"the body is larger than {self._max_bytes} bytes")
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        """Read on without keeping anything, so that a client that only writes now will read its answer later."""
        while self._more and self._seen <= _DRAIN * self._max_bytes:
            await self._next()


# What is left of the body is not read, so nothing else can be understood on that connection.
_refused = partial(HTTPException, headers={"connection": "close"})
