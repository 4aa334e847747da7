"""The router's admin door, as commands use it."""

import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from baton.tls import own_verify
from deploy.cluster import EMBEDDED
from deploy.door import AdminDoor, find
from engine.core.errors import InvalidRequest, NotFound, Unavailable
from engine.server.config import CLUSTER_KEY_VARIABLE, LOOPBACK

_TIMEOUT_S = 10.0


def connect(url: str, admin: str) -> httpx.Client:
    """A client of the admin door. Raises InvalidRequest or NotFound."""
    if admin:
        key = os.environ.get(CLUSTER_KEY_VARIABLE, "")
        if not key:
            raise InvalidRequest(f"--admin needs the cluster key in {CLUSTER_KEY_VARIABLE}")
        found = AdminDoor(admin, key)
    else:
        found = find(_port(url))
        if not found.url:
            raise NotFound(f"the router of {url} is on another machine: run this there, or give --admin")
    headers = {"authorization": f"Bearer {found.key}"}
    return httpx.Client(base_url=found.url, headers=headers, timeout=_TIMEOUT_S, verify=own_verify())


def connect_control(url: str, control: str) -> httpx.Client:
    """A client of the control door of a fleet. Raises InvalidRequest or NotFound."""
    if control:
        return connect(url, control)
    found = find(_port(url))
    if not found.control:
        raise NotFound(f"the service at {url} was not started by `baton up`")
    return httpx.Client(base_url=found.control, headers={"authorization": f"Bearer {found.key}"}, timeout=_TIMEOUT_S)


def own_fleet(url: str) -> tuple[str, str] | None:
    """Name and Ray address of the fleet started here at `url`; None: it cannot be there without its controller."""
    try:
        found = find(_port(url))
    except NotFound:
        return None
    return (found.fleet, found.ray) if found.fleet and found.ray != EMBEDDED else None


def routers_of(url: str) -> tuple[str, ...]:
    """All routers of the service that this user started at `url`; none for one of another machine or user."""
    try:
        routers = tuple(find(_port(url)).routers)
    except NotFound:
        return ()
    return routers if urlsplit(url).hostname in LOOPBACK or url in routers else ()


def _port(url: str) -> int:
    try:
        parts = urlsplit(url)
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise InvalidRequest(f"--url {url}: {error}") from error


def call_door(
    door: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = _TIMEOUT_S
) -> dict[str, Any]:
    """One request of the admin door. Raises NotFound, InvalidRequest or Unavailable."""
    try:
        response = door.request(method, path, json=body, timeout=timeout_s)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(response.text)
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise InvalidRequest(response.text)
        answer: dict[str, Any] = response.raise_for_status().json()
    except httpx.ConnectError as error:
        hint = "; if nobody controls the fleet, `baton up` takes it over again" if path.startswith("/fleet") else ""
        raise Unavailable(f"cannot reach the door at {door.base_url}: {first_line(error)}{hint}") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Unavailable(f"cannot reach the admin door at {door.base_url}: {first_line(error)}") from error
    return answer


def first_line(error: Exception) -> str:
    """What went wrong; httpx goes on with where to read about it."""
    return str(error).partition("\n")[0]
