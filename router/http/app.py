"""The OpenAI-compatible HTTP door as an ASGI application."""

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from router.api import Generator, StatusSource
from router.doors.config import DoorConfig
from router.text.model import ServedModel


def create_app(
    generator: Generator, model: ServedModel, status: StatusSource, config: DoorConfig, registry: CollectorRegistry
) -> FastAPI:
    """The application; it owns nothing that needs closing.

    Args:
        generator: the router behind the door.
        model: the one served model.
        status: what /health and /status report.
        config: limits.
        registry: what /metrics exposes; the door adds its own metrics to it.
    """
    app = FastAPI(title="Baton", version="1")

    @app.get("/health")
    def health() -> Response:
        """200 when a request could be served now, else 503 with the reason."""
        now = status.status()
        return JSONResponse({"ready": now.ready, "detail": now.detail}, status_code=200 if now.ready else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app
