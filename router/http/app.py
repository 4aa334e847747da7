"""The OpenAI-compatible HTTP door as an ASGI application."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from engine.core.errors import BatonError
from router.api import Generator, StatusSource
from router.doors.config import DoorConfig
from router.doors.prompts import check_model, tokens_of_chat, tokens_of_text
from router.doors.sampling import complaint
from router.http.chat import chat
from router.http.completions import complete
from router.http.errors import error_response, plain_error_response
from router.http.limits import BodyLimit
from router.http.metrics import RequestMetrics
from router.http.respond import Door, Json
from router.http.schema import ChatRequest, CompletionRequest, TokenizeRequest
from router.http.status import status_body
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
    _add_openai(app, Door(generator, model, config))
    _add_operations(app, status, registry)
    app.add_exception_handler(BatonError, _baton_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(RequestMetrics, registry=registry)
    return app


def _add_openai(app: FastAPI, door: Door) -> None:
    card = {"id": door.model.name, "object": "model", "created": door.model.created_s, "owned_by": "baton"}
    card |= {"max_model_len": door.model.max_model_len}

    @app.get("/v1/models")
    async def list_models() -> Json:
        """The one served model."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Json:
        """The served model by its name."""
        check_model(door.model, name)
        return card

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text or token ids, one or a batch."""
        return await complete(request, body, door)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await chat(request, body, door)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Json:
        """Token ids exactly as the model would see them."""
        check_model(door.model, door.model.name if body.model is None else body.model)
        if body.messages is not None:
            tokens = await tokens_of_chat(door.model, [message.plain() for message in body.messages], check=False)
        else:
            tokens = await tokens_of_text(door.model, body.prompt or "", check=False)
        return {"tokens": list(tokens), "count": len(tokens), "max_model_len": door.model.max_model_len}


def _add_operations(app: FastAPI, status: StatusSource, registry: CollectorRegistry) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 when a request could be served now, else 503 with the reason."""
        now = status.status()
        return JSONResponse({"ready": now.ready, "detail": now.detail}, status_code=200 if now.ready else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/status")
    async def status_page() -> Json:
        """The workers and how busy they are, as `baton status` shows it."""
        return status_body(status.status())


async def _baton_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    return error_response(error)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(complaint(error.errors(), skip=1))


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return plain_error_response(error.status_code, error.detail)


async def _unexpected_error(_request: Request, _error: Exception) -> Response:
    return plain_error_response(
        500, "internal error; the server's log has it"
    )  # raised again by the framework, which logs
