"""The paths that generate, without the framework's way to them: a third of what a short answer would cost."""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.core.errors import BatonError
from router.http.errors import error_response, plain_error_response
from router.http.respond import request_id_of

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectPaths:
    """Answers POST on the paths of `endpoints`; everything else is for `rest`, which knows these paths, too."""

    def __init__(self, rest: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._rest = rest
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Errors of the tree are answered; others are the server's."""
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
        if endpoint is None:
            await self._rest(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except BatonError as error:
            response = baton_response(request, error)
        except HTTPException as error:
            response = http_response(request, error)
        await response(scope, receive, send)


def baton_response(request: Request, error: BatonError) -> Response:
    """What answers an error of Baton's own."""
    return error_response(error, {"x-request-id": request_id_of(request, "error")})


def http_response(request: Request, error: HTTPException) -> Response:
    """What answers an error of the framework's."""
    headers = {"x-request-id": request_id_of(request, "error"), **(error.headers or {})}
    return plain_error_response(error.status_code, error.detail, headers)
