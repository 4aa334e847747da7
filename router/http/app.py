"""The OpenAI-compatible HTTP door as an ASGI application."""

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp

from engine.core.errors import BatonError
from router.api import Generator, StatusSource
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.doors.prompts import check_model, tokens_of_chat, tokens_of_text
from router.http.auth import Authenticate
from router.http.body import read_body
from router.http.chat import chat
from router.http.completions import complete
from router.http.direct import DirectPaths, Endpoint, baton_response, http_response
from router.http.errors import plain_error_response
from router.http.limits import BodyLimit
from router.http.metrics import RequestMetrics
from router.http.openapi import document
from router.http.page import page_response
from router.http.respond import Door, Json
from router.http.responses import create_response
from router.http.responses_schema import ResponsesRequest
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
) -> ASGIApp:
    """The application; it owns nothing that needs closing.

    Args:
        generator: the router behind the door.
        model: the one served model.
        status: what /health and /status report.
        config: limits.
        registry: what /metrics exposes; the door adds its own metrics to it.
        gateway: who may call, and how much; left out, everybody.
    """
    # Bodies are read by read_body, of which it knows nothing. A redirect would go wherever the Host header says.
    framework = FastAPI(title="Baton", openapi_url=None, redirect_slashes=False)
    gateway = gateway or Gateway()
    door = Door(generator, model, config, gateway)
    endpoints: dict[str, Endpoint] = {
        "/v1/completions": lambda request: complete(request, door),
        "/v1/chat/completions": lambda request: chat(request, door),
        "/v1/responses": lambda request: create_response(request, door),
    }
    _add_openai(framework, door, endpoints)
    _add_operations(framework, status, registry)
    _add_document(framework, model.name)
    framework.add_exception_handler(BatonError, _baton_error)
    framework.add_exception_handler(HTTPException, _http_error)
    app: ASGIApp = DirectPaths(framework, endpoints)
    app = BodyLimit(app, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app = Authenticate(app, gateway=gateway)
    app = RequestMetrics(app, registry=registry)
    return ServerErrorMiddleware(app, handler=_unexpected_error)


def _add_openai(app: FastAPI, door: Door, endpoints: Mapping[str, Endpoint]) -> None:
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
        return await endpoints["/v1/completions"](request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await endpoints["/v1/chat/completions"](request)

    @app.post("/v1/responses", response_model=None)
    async def responses(request: Request) -> Response:
        """Answer a conversation, in the words of OpenAI's Responses API; nothing is kept."""
        return await endpoints["/v1/responses"](request)

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
        "/v1/responses": ResponsesRequest,
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
    return baton_response(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_response(request, error)


async def _unexpected_error(_request: Request, _error: Exception) -> Response:
    return plain_error_response(
        500, "internal error; the server's log has it"
    )  # raised again by the framework, which logs
