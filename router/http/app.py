"""The OpenAI-compatible HTTP door as an ASGI application."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from engine.core.errors import BatonError
from router.api import Generator, StatusSource
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.doors.prompts import check_model, tokens_of_chat, tokens_of_text
from router.http.auth import Authenticate
from router.http.body import read_body
from router.http.chat import chat
from router.http.completions import complete
from router.http.errors import error_response, plain_error_response
from router.http.limits import BodyLimit
from router.http.metrics import RequestMetrics
from router.http.openapi import document
from router.http.page import page_response
from router.http.respond import Door, Json, request_id_of
from router.http.schema import ChatRequest, CompletionRequest, TokenizeRequest
from router.http.status import prefixes_body, status_body
from router.text.model import ServedModel


def create_app(
    generator: Generator,
    model: ServedModel,
    status: StatusSource,
    config: DoorConfig,
    registry: CollectorRegistry,
    gateway: Gateway | None = None,
) -> FastAPI:
    """The application; it owns nothing that needs closing.

    Args:
        generator: the router behind the door.
        model: the one served model.
        status: what /health and /status report.
        config: limits.
        registry: what /metrics exposes; the door adds its own metrics to it.
        gateway: who may call, and how much; left out, everybody.
    """
    app = FastAPI(title="Baton", openapi_url=None)  # bodies are read by read_body, of which FastAPI knows nothing
    gateway = gateway or Gateway()
    _add_openai(app, Door(generator, model, config, gateway))
    _add_operations(app, status, registry)
    _add_document(app, model.name)
    app.add_exception_handler(BatonError, _baton_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(Authenticate, gateway=gateway)
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
    async def completions(request: Request) -> Response:
        """Continue a text or token ids, one or a batch."""
        return await complete(request, door)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await chat(request, door)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Json:
        """Token ids exactly as the model would see them."""
        body = await read_body(request, TokenizeRequest)
        check_model(door.model, door.model.name if body.model is None else body.model)
        if body.messages is not None:
            tokens = await tokens_of_chat(door.model, [message.plain() for message in body.messages], check=False)
        else:
            tokens = await tokens_of_text(door.model, body.prompt or "", check=False)
        return {"tokens": list(tokens), "count": len(tokens), "max_model_len": door.model.max_model_len}


def _add_document(app: FastAPI, model_name: str) -> None:
    """The last route: what is added before it is in the document."""
    bodies: dict[str, type[BaseModel]] = {
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatRequest,
        "/tokenize": TokenizeRequest,
    }
    written = document(app, bodies, model_name)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Json:
        """What this door takes and gives."""
        return written


def _add_operations(app: FastAPI, status: StatusSource, registry: CollectorRegistry) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """200 when a request could be served now, else 503 with the reason."""
        now = status.status()
        return JSONResponse({"ready": now.ready, "detail": now.detail}, status_code=200 if now.ready else 503)

    @app.get("/live")
    async def live() -> Response:
        """200 while this process answers at all, whatever its workers do."""
        return JSONResponse({"live": True})

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/status")
    async def status_page() -> Json:
        """The workers and how busy they are, as `baton status` shows it."""
        return status_body(status.status())

    @app.get("/status/prefixes")
    async def prefixes() -> Json:
        """What the workers' caches hold, as a tree."""
        return prefixes_body(status.prefix_tree())

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """The service as people see it, and a chat."""
        return page_response()


async def _baton_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    return error_response(error, {"x-request-id": request_id_of(request, "error")})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {"x-request-id": request_id_of(request, "error"), **(error.headers or {})}
    return plain_error_response(error.status_code, error.detail, headers)


async def _unexpected_error(_request: Request, _error: Exception) -> Response:
    return plain_error_response(
        500, "internal error; the server's log has it"
    )  # raised again by the framework, which logs
