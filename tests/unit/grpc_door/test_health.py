"""grpc.health.v1 per service with Watch, and reflection."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.grpc_door.conftest import Service

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ("", "baton.v1.Inference")


@pytest.mark.parametrize("name", NAMES)
async def test_health_of_the_server_and_of_the_service(service: Service, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await stub.Check(request)).status == NOT_SERVING
    await service.door.set_serving(True)
    assert (await stub.Check(request)).status == SERVING


async def test_watch_follows_the_service_into_its_drain(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAMES[1]))
    assert (await watch.read()).status == NOT_SERVING
    await service.door.set_serving(True)
    assert (await watch.read()).status == SERVING
    await service.door.drain()
    assert (await watch.read()).status == NOT_SERVING
    await service.door.set_serving(True)  # too late: it is draining
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


async def test_unknown_services_have_no_health(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="baton.v1.Other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_their_file(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)

    async def ask(**fields: str) -> reflection_pb2.ServerReflectionResponse:
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**fields)]))
        return await call.read()

    names = {each.name for each in (await ask(list_services="")).list_services_response.service}
    assert {"baton.v1.Inference", "grpc.health.v1.Health"} <= names
    answer = await ask(file_containing_symbol="baton.v1.GenerateRequest")
    assert b"max_tokens" in answer.file_descriptor_response.file_descriptor_proto[0]
