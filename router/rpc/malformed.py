"""Bytes that are no message of the called method: the caller's mistake, and answered as one.

Left to itself, grpc parses before a method is called, logs a traceback and answers UNKNOWN.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from engine.core.errors import InvalidRequest
from router.rpc.errors import rpc_status_of


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Parses the request of every method that takes one message, which all of this door's are but reflection's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method's handler with its parser moved inside."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            method = _parsing(handler.unary_stream, handler.request_deserializer)
            return grpc.unary_stream_rpc_method_handler(method, None, handler.response_serializer)
        method = _parsing(handler.unary_unary, handler.request_deserializer)
        return grpc.unary_unary_rpc_method_handler(method, None, handler.response_serializer)


def _parsing(method: Callable[..., Awaitable[Any]], parse: Callable[[bytes], Any]) -> Callable[..., Awaitable[Any]]:
    async def parse_and_call(body: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            request = parse(body)
        except DecodeError:
            refused = InvalidRequest("the request is not a valid protobuf message of this method")
            await context.abort_with_status(rpc_status.to_status(rpc_status_of(refused)))
        return await method(request, context)

    return parse_and_call
