"""Requests that are no messages: the client's mistake, where grpc itself would call them an internal error."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from engine.core.errors import InvalidRequest
from router.rpc.errors import rpc_status_of

_Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class LenientServer:
    """Takes a generated service's handlers and gives them to `server`, each refusing what cannot be parsed."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers come by name, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Of one service, by method."""
        lenient = {name: _lenient(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, lenient),))
        self._server.add_registered_method_handlers(service, lenient)


def _lenient(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    parse = handler.request_deserializer

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return None

    if handler.response_streaming:
        make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
    else:
        make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
    return make(_refusing(behaviour), request_deserializer=read, response_serializer=handler.response_serializer)


def _refusing(behaviour: _Behaviour) -> _Behaviour:
    async def checked(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request is None:
            error = InvalidRequest("the request is not a message of this method")
            await context.abort_with_status(rpc_status.to_status(rpc_status_of(error)))
        return await behaviour(request, context)

    return checked
