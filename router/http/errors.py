"""Baton's error tree as OpenAI error objects. One table; nothing else in this door chooses a status."""

import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import JSONResponse

from engine.core.errors import BatonError, Code, Unauthenticated
from router.doors.prompts import ContextLengthExceeded, UnknownModel
from router.gateway.budget import RateLimited
from router.http.rate_headers import rate_headers

STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.FAILED_PRECONDITION: 500,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

_CODE = {
    ContextLengthExceeded: "context_length_exceeded",
    UnknownModel: "model_not_found",
    RateLimited: "rate_limit_exceeded",
    Unauthenticated: "invalid_api_key",
}
"""Where OpenAI has a word of its own."""
_TYPE = {401: "authentication_error", 429: "rate_limit_error"}


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """The object that OpenAI clients look for in a body or in an event of a stream."""
    kind = _TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": _text(message),
            "type": kind,
            "param": None if param is None else _text(param),
            "code": code,
        }
    }


def _text(quoted: str) -> str:
    """A message may quote what a client sent, and JSON can spell strings that no encoding has (lone surrogates)."""
    return quoted.encode(errors="replace").decode()


def baton_error_object(error: BatonError) -> dict[str, object]:
    """The same for one of Baton's own errors."""
    code: str = _CODE.get(type(error), error.code.value)
    return error_object(STATUS[error.code], error.message, error.param, code)


def error_response(error: BatonError, headers: Mapping[str, str]) -> JSONResponse:
    """A whole response for an error that came before the headers."""
    return JSONResponse(baton_error_object(error), STATUS[error.code], {**headers, **_again(error)})


def _again(error: BatonError) -> dict[str, str]:
    """When to come back: in whole seconds as HTTP has it, and in the milliseconds that OpenAI's clients look for."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    return headers | rate_headers(error.quotas) if isinstance(error, RateLimited) else headers


def plain_error_response(
    status: int, message: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A whole response for what the framework refused: an unknown path, a wrong method, a body that is too large."""
    return JSONResponse(error_object(status, message or HTTPStatus(status).phrase), status, headers)
