"""Adding and removing workers at run time, for whoever starts them from outside of the router's process.

A door of its own, on a port of its own (loopback unless told otherwise), and every request needs the cluster key:
whoever can add a worker can read every prompt.
"""

import hmac
import json
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from engine.core.errors import NotFound
from router.admin_prefixes import prefix_route
from router.service import RouterService

_MAX_BODY_BYTES = 4096
_MAX_DRAIN_S = 86_400.0


def create_admin_app(service: RouterService, cluster_key: bytes, decode: Callable[[Sequence[int]], str]) -> Starlette:
    """The ASGI application.

    GET    /admin/workers                      {"workers": [{"id", "address", "state", "detail", "requests"}]}
    POST   /admin/workers {"address"}          202; the session opens in its own time
    DELETE /admin/workers?address=&drain_s=    200 when it is gone; its calls had drain_s to move or to end there
    POST   /admin/drain {"worker", "timeout_s"}  202; the worker ends when it is empty, or at its time
    GET    /admin/prefixes?limit=              what the router knows of the workers' prefix caches: prefix_body

    `decode` makes text of tokens: the beginnings of prompts are shown.
    """

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, cluster_key):
            raise HTTPException(401, "this needs the cluster key")

    async def show(request: Request) -> JSONResponse:
        check_key(request)
        workers = [
            {
                "id": worker.info.id,
                "address": worker.info.address,
                "state": worker.state,
                "detail": worker.detail,
                "requests": worker.num_requests,
            }
            for worker in service.status().workers
        ]
        return JSONResponse({"workers": workers})

    async def add(request: Request) -> JSONResponse:
        check_key(request)
        service.add_worker(_address(await _body(request)))
        return JSONResponse({}, status_code=202)

    async def remove(request: Request) -> JSONResponse:
        check_key(request)
        try:
            drain_s = float(request.query_params.get("drain_s", "0"))
            await service.remove_worker(request.query_params.get("address", ""), drain_s)
        except ValueError:
            raise HTTPException(400, "drain_s is not a number") from None
        except NotFound as error:
            raise HTTPException(404, error.message) from None
        return JSONResponse({})

    async def drain(request: Request) -> JSONResponse:
        check_key(request)
        worker, timeout_s = _drain(await _body(request))
        try:
            service.drain_worker(worker, timeout_s)
        except NotFound as error:
            raise HTTPException(404, error.message) from None
        return JSONResponse({}, status_code=202)

    return Starlette(
        routes=[
            Route("/admin/workers", show, methods=["GET"]),
            Route("/admin/workers", add, methods=["POST"]),
            Route("/admin/workers", remove, methods=["DELETE"]),
            Route("/admin/drain", drain, methods=["POST"]),
            prefix_route(service.prefixes, check_key, decode),
        ]
    )


async def _body(request: Request) -> object:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise HTTPException(413, "the body is too long")
    try:
        return json.loads(data)
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None


def _address(body: object) -> str:
    address = body.get("address") if isinstance(body, dict) else None
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (isinstance(address, str) and host and port.isdigit()):
        raise HTTPException(400, 'the body must be {"address": "host:port"}')
    return address


def _drain(body: object) -> tuple[str, float]:
    worker, timeout_s = (body.get("worker"), body.get("timeout_s")) if isinstance(body, dict) else (None, None)
    if not isinstance(worker, str) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s < _MAX_DRAIN_S:
        raise HTTPException(400, 'the body must be {"worker": "id", "timeout_s": seconds}')
    return worker, float(timeout_s)
