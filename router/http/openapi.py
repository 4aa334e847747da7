"""The OpenAPI document: made from the schemas that bodies are checked with, so it cannot say anything else."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from router.http.auth import OPEN_PATHS

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request cannot succeed as it is",
    "401": "The key is missing or wrong",
    "403": "The key does not allow this",
    "404": "There is no such model or path",
    "408": "The body took too long to come",
    "413": "The body is too large",
    "429": "A limit is reached, or the service is full; Retry-After says when to come back",
    "503": "No worker can answer now",
    "504": "The request's deadline passed",
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(app: FastAPI, bodies: Mapping[str, type[BaseModel]], model_name: str) -> Json:
    """The document of all routes of `app`. `bodies`: path -> what is posted there; `model` can only be `model_name`."""
    doc = get_openapi(title="Baton", version="1", routes=app.routes)
    schemas: Json = doc.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = _ERROR
    doc["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in doc["paths"].items():
        for operation in operations.values():
            _add_errors(operation, path)
            if path in bodies:
                schema = copy.deepcopy(_schema(bodies[path]))
                schemas |= schema.pop("$defs", {})
                schema["properties"]["model"] |= {"enum": [model_name]}
                operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
                if "stream" in schema["properties"]:
                    operation["responses"]["200"]["content"] = {"application/json": {}, "text/event-stream": {}}
    return doc


@cache
def _schema(body: type[BaseModel]) -> Json:
    """Of one body, to be copied: pydantic takes tens of milliseconds to write it."""
    return body.model_json_schema(ref_template=_REF)


def _add_errors(operation: Json, path: str) -> None:
    responses: Json = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; bodies and their errors are the doors'
    if path in OPEN_PATHS:
        if path == "/health":
            responses["503"] = {"description": "No worker can answer now"}
        return
    operation["security"] = [{"key": []}]
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    for status, text in _ERRORS.items():
        responses[status] = {"description": text, "content": content}
