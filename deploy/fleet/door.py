"""The control door of a fleet: HTTP on loopback, and every request needs the cluster key."""

import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deploy.fleet.config import ROUTER_POOL, config_from
from deploy.fleet.controller import Controller
from deploy.fleet.plan import Phase
from engine.core.errors import BatonError, Code, InvalidRequest

_MAX_BODY_BYTES = 256 << 10
_STATUS = {Code.NOT_FOUND: 404, Code.INVALID_ARGUMENT: 400, Code.FAILED_PRECONDITION: 400}


def create_door(controller: Controller, cluster_key: bytes, down: Callable[[float | None], None]) -> Starlette:
    """The ASGI application.

    GET  /fleet                              what is wanted and what is there: `fleet_body`
    POST /fleet/scale  {"counts": {pool: n}} 202
    POST /fleet/role   {"worker", "role"}    202
    POST /fleet/update {"config": {...}}     202; the content of CONFIG.yaml
    POST /fleet/down   {"drain_s"}           202; null: as the config says
    """

    commands = _Commands(controller, down)
    acts = {"scale": commands.scale, "role": commands.role, "update": commands.update, "down": commands.end}

    async def show(request: Request) -> Response:
        return _refused(request, cluster_key) or JSONResponse(fleet_body(controller, time.monotonic()))

    async def act(request: Request) -> Response:
        if refused := _refused(request, cluster_key):
            return refused
        try:
            acts[request.path_params["what"]](await _body(request))
        except KeyError:
            return PlainTextResponse("no such command", 404)
        except BatonError as error:
            return PlainTextResponse(error.message, _STATUS.get(error.code, 500))
        return JSONResponse({}, 202)

    return Starlette(routes=[Route("/fleet", show, methods=["GET"]), Route("/fleet/{what}", act, methods=["POST"])])


class _Commands:
    """What bodies mean. Each raises BatonError for one that means nothing, or that cannot be."""

    def __init__(self, controller: Controller, down: Callable[[float | None], None]) -> None:
        self._controller, self._down = controller, down

    def scale(self, body: dict[str, Any]) -> None:
        """{"counts": {pool: number}}"""
        counts = body.get("counts")
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()) or not counts:
            raise InvalidRequest('the body must be {"counts": {pool: number}}')
        self._controller.scale(counts)

    def role(self, body: dict[str, Any]) -> None:
        """{"worker": id, "role": prefill or decode}"""
        worker, wanted = body.get("worker"), body.get("role")
        if not isinstance(worker, str) or wanted not in ("prefill", "decode"):
            raise InvalidRequest('the body must be {"worker": id, "role": "prefill" or "decode"}')
        self._controller.change_role(worker, wanted)

    def update(self, body: dict[str, Any]) -> None:
        """{"config": the content of CONFIG.yaml}"""
        self._controller.update(config_from(body.get("config")))

    def end(self, body: dict[str, Any]) -> None:
        """{"drain_s": seconds or null}"""
        drain_s = body.get("drain_s")
        if not (drain_s is None or (isinstance(drain_s, int | float) and drain_s >= 0)):
            raise InvalidRequest('the body must be {"drain_s": seconds or null}')
        self._down(drain_s)


def fleet_body(controller: Controller, now: float) -> dict[str, Any]:
    """The fleet as JSON."""
    config, places = controller.config, controller.places.values()
    pools = {
        name: {
            "role": config.role_of(name),
            "wanted": count,
            "ready": sum(place.pool == name and place.phase is Phase.READY for place in places),
            "version": controller.version_of(name),
        }
        for name, count in controller.counts.items()
    }
    return {
        "name": config.name,
        "place_s": config.place_s,
        "pools": pools,
        "places": [_place(controller, id, now) for id in sorted(controller.places)],
        "nodes": [
            {"id": node.id, "address": node.address, "free": dict(node.free), "total": dict(node.total)}
            for node in controller.nodes.view()
        ],
    }


def _place(controller: Controller, id: str, now: float) -> dict[str, Any]:
    place, life = controller.places[id], controller.lives[id]
    node = life.room.node.address if life.room is not None else ""
    body: dict[str, Any] = {
        "id": id,
        "pool": place.pool,
        "phase": place.phase,
        "version": place.version,
        "deaths": place.deaths,
        "node": node,
        "address": "",
        "incarnation": "",
        "detail": controller.detail_of(id),
        "lacks_s": round(now - life.since_s, 1) if life.lack else 0.0,
    }
    if life.info is not None and place.pool != ROUTER_POOL:
        body |= {"address": life.info.address, "incarnation": f"{life.info.incarnation:016x}"}
    elif id in controller.routers.ids:
        body["address"] = controller.routers.url(id)
    return body


def _refused(request: Request, cluster_key: bytes) -> Response | None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    known = hmac.compare_digest(given, cluster_key)
    return None if known else PlainTextResponse("this needs the cluster key", 401)


async def _body(request: Request) -> dict[str, Any]:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise InvalidRequest("the body is too long")
    try:
        body = json.loads(data)
    except ValueError:
        raise InvalidRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not an object")
    return body
