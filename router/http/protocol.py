"""HTTP/1.1 of uvicorn with bounds on what one connection may make the server keep.

uvicorn reads a request's head however long it is and however slowly it comes, queues pipelined requests without end,
and tells only the last of them that the client has left.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.http.errors import error_object

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers."""
HEAD_TIMEOUT_S = 30.0
"""From the head's first byte (from the connection's start, for the first one) to its end."""
MAX_PIPELINED = 64
"""Requests that wait while an earlier one of their connection is answered."""

_REASONS = {
    HTTPStatus.BAD_REQUEST: "this is not HTTP/1.1",
    HTTPStatus.REQUEST_TIMEOUT: f"the headers did not come within {HEAD_TIMEOUT_S:g} s",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"the headers are longer than {MAX_HEAD_BYTES} bytes",
}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes: int | None = 0
        """Of the head that is being read; None between a head's end and its body's."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A silent connection is one whose first head does not come."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever is being answered hears of it, not only the request that came last."""
        self._stop_head_timer()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser unless the head has become too long or too many requests wait."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            self._start_head_timer()
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._head_bytes = None
        self._stop_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes now is the next head; the rest of this chunk is not counted."""
        super().on_message_complete()
        self._head_bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read is answered like every other bad request."""
        self._refuse(HTTPStatus.BAD_REQUEST)

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_answering():  # a stray newline after a body is no reason to cut the answer
            self._start_head_timer()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    def _refuse(self, status: HTTPStatus) -> None:
        """Hang up; with an answer, unless that would end up inside of another one's."""
        if self.transport.is_closing():
            return
        if not self._is_answering():
            content = json.dumps(error_object(status, f"{status.phrase}: {_REASONS[status]}")).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + content)
        self.transport.close()
