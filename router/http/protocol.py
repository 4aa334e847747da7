"""HTTP/1.1 of uvicorn with bounds on what one connection may make the server keep.

uvicorn reads a request's head however long it is and however slowly it comes, keeps trailers without end and as if they
were headers, queues pipelined requests without end, and tells only the last of them that the client has left.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.http.errors import error_object

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers; and as much around a body: the sizes of its chunks with what is written behind them, and
trailers."""
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
        self._in_head = True
        """False between a head's end and its body's."""
        self._wrapping_bytes = 0
        """Received since the head began, or since the last part of a body: what is kept of it, nobody has asked for."""
        self._owed_bytes = 0
        """Of a body that the parser takes for another protocol."""
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
        self._wrapping_bytes += len(data)
        if self._in_head:
            self._start_head_timer()
        self._parse(data)
        if self._wrapping_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def _parse(self, data: bytes) -> None:
        """As uvicorn does, but what strangers send is nothing to warn of, and offers of other protocols have a body."""
        self._unset_keepalive_if_required()
        while data := self._take_owed(data):
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._decline()
            except httptools.HttpParserError:
                self._refuse(HTTPStatus.BAD_REQUEST)
                return

    def _decline(self) -> None:
        """Answer in HTTP/1.1 what offers to go on in another protocol, as Java's client does with every request.

        The parser takes what comes now to be in that protocol. It is the request's body.
        """
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            self._refuse(HTTPStatus.BAD_REQUEST)
        self._owed_bytes = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self.cycle.more_body = self._owed_bytes > 0
        self._in_head = not self.cycle.more_body

    def _take_owed(self, data: bytes) -> bytes:
        """Hand on what belongs to the body of a declined offer; the rest is the next request's."""
        if not self._owed_bytes:
            return data
        part, rest = data[: self._owed_bytes], data[self._owed_bytes :]
        self._owed_bytes -= len(part)
        self.on_body(part)
        if not self._owed_bytes:
            self.on_message_complete()
        return rest

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are dropped: nobody reads them, and uvicorn would make them headers of the request."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._in_head, self._wrapping_bytes = False, 0
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The rest of what came with it is not counted."""
        super().on_body(body)
        self._wrapping_bytes = 0

    def on_message_complete(self) -> None:
        """What comes now is the next head; the rest of this chunk is not counted."""
        super().on_message_complete()
        self._in_head, self._wrapping_bytes = True, 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

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
