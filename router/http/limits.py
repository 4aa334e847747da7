"""A limit on request bodies that holds while they are read, not after."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DRAIN = 4
"""A client that is still sending gets its answer only if it is listened to; up to so many times the limit."""


class BodyLimit:
    """Refuses a body over `max_bytes` with 413 and never holds more than that of it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what is read of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                await self._drain(message, receive, seen)
                raise HTTPException(413, f"the body is larger than {self._max_bytes} bytes")
            return message

        await self._app(scope, counted, send)

    async def _drain(self, message: Message, receive: Receive, seen: int) -> None:
        """Read on without keeping anything, so that a client that only writes now will read its answer later."""
        while message.get("more_body", False) and seen <= _DRAIN * self._max_bytes:
            message = await receive()
            seen += len(message.get("body", b""))
