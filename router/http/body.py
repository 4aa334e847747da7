"""A request's body as a checked value, straight from its bytes.

The bytes go to pydantic as they are: what a schema refuses (a million prompts, a key nobody knows) is refused while it
is parsed, and never becomes Python objects that hold up every other client of this process.
"""

import re
import time
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from engine.core.errors import Cancelled, InvalidRequest
from router.doors.sampling import invalid

_T = TypeVar("_T", bound=BaseModel)
_NOT_JSON = "the body must be a JSON object, sent with content-type application/json"
ARRIVED = "baton_arrived_s"
"""Where a request's scope says when it was whole, on the monotonic clock."""
MAX_CONTAINERS = 300_000
"""Lists and objects in a body. The largest conversation has fewer; millions of empty ones take seconds to parse."""
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


async def read_body(request: Request, kind: type[_T]) -> _T:
    """The body as a `kind`. Raises InvalidRequest that says what is wrong with it, Cancelled when it breaks off."""
    return parse_body(await read_bytes(request), kind)


async def read_bytes(request: Request) -> bytes:
    """The body of what says that it is JSON. Raises as `read_body` does."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise InvalidRequest(_NOT_JSON)
    try:
        data = await request.body()
    except ClientDisconnect:
        raise Cancelled("the client left before its request was whole") from None
    request.scope[ARRIVED] = time.monotonic()
    return data


def parse_body(data: bytes, kind: type[_T]) -> _T:
    """Bytes as a `kind`. Raises InvalidRequest."""
    if _num_brackets(data) > MAX_CONTAINERS and _num_brackets(_STRING.sub(b"", data)) > MAX_CONTAINERS:
        raise InvalidRequest(f"the body has more than {MAX_CONTAINERS} lists and objects")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise invalid(error) from error


def _num_brackets(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")
