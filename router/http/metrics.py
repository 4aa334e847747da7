"""What the HTTP door counts."""

from time import perf_counter

from prometheus_client import CollectorRegistry, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ROUTES = frozenset(
    (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/models",
        "/tokenize",
        "/health",
        "/live",
        "/metrics",
        "/status",
    )
)


class RequestMetrics:
    """Counts and times every HTTP request, by route and status."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._seconds = Histogram(
            "baton_http_request_seconds",
            "From the request's head to the last byte of its answer",
            ("route", "status"),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._open = Gauge("baton_http_requests_open", "HTTP requests being answered", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it ended; one that never got a status counts as 499."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499
        start = perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._open.track_inprogress():
            try:
                await self._app(scope, receive, noted)
            finally:
                route = scope["path"] if scope["path"] in _ROUTES else "other"
                self._seconds.labels(route, str(status)).observe(perf_counter() - start)
