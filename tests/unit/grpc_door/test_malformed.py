"""Bytes that are no protobuf message, sent by a client that serializes nothing."""

import grpc
import pytest
from grpc_status import rpc_status

from tests.unit.grpc_door.conftest import Service

UNARY = ("/baton.v1.Inference/Tokenize", "/baton.v1.Inference/ListModels", "/grpc.health.v1.Health/Check")
STREAMING = ("/baton.v1.Inference/Generate", "/grpc.health.v1.Health/Watch")
TRUNCATED, NO_FIELD = b"\x0a\xff", b"\x00\x01\x02"


@pytest.mark.parametrize("body", [TRUNCATED, NO_FIELD])
@pytest.mark.parametrize("method", UNARY + STREAMING)
async def test_a_body_that_is_no_message_is_the_callers_mistake(
    service: Service, method: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kind = service.channel.unary_unary if method in UNARY else service.channel.unary_stream
    call = kind(method)(body)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method in UNARY else call.read())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf message" in (caught.value.details() or "")
    status = rpc_status.from_call(caught.value)
    assert status is not None and len(status.details) == 1
    assert not caplog.records
    assert service.generator.calls == []
