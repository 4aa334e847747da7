"""Who may read which path, before anything of a body is read."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.core.errors import BatonError, PermissionDenied
from router.doors.gateway import Gateway
from router.gateway.tenants import Caller
from router.http.caller import CALLER
from router.http.errors import error_response
from router.http.respond import request_id_of

OPEN_PATHS = frozenset(("/", "/health", "/live", "/metrics", "/openapi.json"))
"""For everybody: probes and scrapers have no key, and none of these names a client, a prompt or a tenant's key."""
OPERATOR_PATH = "/status"
"""With all that is below it: workers, and what is cached where."""


class Authenticate:
    """Lets a request through that has a key for its path; else answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note who calls, for caller_of."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope[CALLER] = self._caller(scope)
            except BatonError as error:
                await _refused(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        caller = self._gateway.caller(*given)
        if f"{scope['path']}/".startswith(f"{OPERATOR_PATH}/") and not caller.operator:
            raise PermissionDenied(f"{OPERATOR_PATH} is for operators: this key is none of theirs")
        return caller


def _refused(request: Request, error: BatonError) -> ASGIApp:
    headers = {"x-request-id": request_id_of(request, "error")}
    if not isinstance(error, PermissionDenied):
        headers["www-authenticate"] = "Bearer"
    return error_response(error, headers)
