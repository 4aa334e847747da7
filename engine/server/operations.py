"""The worker's HTTP port for operators: GET /metrics, /live and /ready, on a thread of its own. No memory descriptors,
no prompts, no key: nothing here but counts and reasons.
"""

import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from engine.server.readiness import Readiness

REQUEST_TIMEOUT_S = 10.0
"""For a client that does not go on with its request."""
POLL_S = 0.1
"""How soon it notices that it should end."""
MAX_CONNECTIONS = 64
"""Each has a thread of a process that should compute. One more closes the oldest: a probe or a scrape takes
milliseconds, so the oldest is somebody who stalls. The newest must not wait: a probe that fails restarts the worker.
"""


def operations_app(registry: CollectorRegistry, readiness: Readiness) -> WSGIApplication:
    """/live and /ready answer 200, or 503 with the reason; every other path is the metrics page."""
    metrics: WSGIApplication = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/live":
                return _verdict(readiness.why_dead(), start)
            case "/ready":
                return _verdict(readiness.why_not_ready(), start)
            case _:
                return metrics(environ, start)

    return app


def _verdict(wrong: str, start: StartResponse) -> Iterable[bytes]:
    start("503 Service Unavailable" if wrong else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [(wrong or "ok").encode() + b"\n"]


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self._open: dict[socket.socket, None] = {}
        """Connections that are being served, the oldest first."""
        self._lock = Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it on a thread, at the cost of the oldest where there are too many."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MAX_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            _cut(oldest)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """It is served."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or was cut off, is no news; anything else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # its thread was faster
        connection.shutdown(socket.SHUT_RDWR)


class OperationsServer:
    """Serves `operations_app`. Port 0 takes a free one; `port` says which."""

    def __init__(self, registry: CollectorRegistry, readiness: Readiness, host: str, port: int) -> None:
        """Raises OSError when the port cannot be listened on."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server_class = type("_Server", (_Server,), {"address_family": family})
        self._server: WSGIServer = server_class((host, port))
        self._server.set_app(operations_app(registry, readiness))
        self._thread = Thread(target=self._server.serve_forever, args=(POLL_S,), name="operations", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
