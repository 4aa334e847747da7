"""Adding and removing workers at run time, for whoever starts them from outside of the router's process.

A door of its own, on a port of its own (loopback unless told otherwise), and every request needs the cluster key:
whoever can add a worker can read every prompt.
"""

import hmac
import json

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from engine.core.errors import NotFound
from router.service import RouterService

_MAX_BODY_BYTES = 4096


def create_admin_app(service: RouterService, cluster_key: bytes) -> Starlette:
    """The ASGI application.

    GET    /admin/workers                      {"workers": [{"address", "state", "detail"}]}
    POST   /admin/workers {"address"}          202; the session opens in its own time
    DELETE /admin/workers?address=&drain_s=    200 when it is gone; its calls had drain_s to end there
    """

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, cluster_key):
            raise HTTPException(401, "this needs the cluster key")

    async def show(request: Request) -> JSONResponse:
        check_key(request)
        workers = [
            {"address": worker.info.address, "state": worker.state, "detail": worker.detail}
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

    return Starlette(
        routes=[
            Route("/admin/workers", show, methods=["GET"]),
            Route("/admin/workers", add, methods=["POST"]),
            Route("/admin/workers", remove, methods=["DELETE"]),
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
