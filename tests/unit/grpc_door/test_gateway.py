"""Keys and limits at the gRPC door, and bytes that are no messages."""

import random
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from baton.client import AsyncClient
from engine.core.errors import Unauthenticated
from engine.wire import inference_pb2 as pb
from router.doors.gateway import Gateway
from router.gateway.tenants import RateLimit, Tenant
from router.text.model import ServedModel
from tests.fakes.tenants import bearer, key_of, table_of
from tests.unit.grpc_door.conftest import Service, serve

SLOW = Tenant("slow", weight=2.0, max_priority=1, requests=RateLimit(0.1, 1.0))
REQUEST = pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(max_tokens=2))


@pytest.fixture
async def guarded(tiny: ServedModel) -> AsyncIterator[Service]:
    async with serve(tiny, Gateway(table_of(Tenant("acme"), SLOW))) as service:
        yield service


def metadata(tenant: str, **more: str) -> tuple[tuple[str, str], ...]:
    return (*bearer(tenant).items(), *more.items())


@pytest.mark.parametrize(
    "given",
    [
        (),
        (("authorization", "Bearer baton_0_0"),),
        (("authorization", key_of("acme")),),
        (*bearer("slow").items(), *bearer("acme").items()),
    ],
)
async def test_without_a_key_nobody_is_served(guarded: Service, given: tuple[tuple[str, str], ...]) -> None:
    calls = (
        guarded.stub.Generate(REQUEST, metadata=given).read(),
        guarded.stub.Tokenize(pb.TokenizeRequest(text="a"), metadata=given),
        guarded.stub.ListModels(pb.ListModelsRequest(), metadata=given),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not guarded.generator.calls


async def test_health_is_open_to_all(guarded: Service) -> None:
    answer = await health_pb2_grpc.HealthStub(guarded.channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_rights_follow_from_the_key(guarded: Service) -> None:
    request = pb.GenerateRequest(text="hi", priority=-9, sampling=pb.SamplingParams(max_tokens=1))
    given = metadata("slow", **{"x-baton-ttft-slo-ms": "1500"})
    assert [message async for message in guarded.stub.Generate(request, metadata=given)]
    (call,) = guarded.generator.calls
    assert (call.tenant, call.priority, call.weight, call.ttft_slo_s) == ("slow", 1, 2.0, 1.5)


async def test_over_the_rate_retry_info_says_when_to_come_back(guarded: Service) -> None:
    assert [message async for message in guarded.stub.Generate(REQUEST, metadata=metadata("slow"))]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await guarded.stub.Generate(REQUEST, metadata=metadata("slow")).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(refused.value)
    assert any(detail.Unpack(retry) for detail in status.details)
    assert 9.0 < retry.retry_delay.ToTimedelta().total_seconds() <= 10.0


async def test_the_client_sends_its_key(guarded: Service) -> None:
    async with AsyncClient(guarded.address, api_key=key_of("acme")) as client:
        assert (await client.models())[0].name == "tiny"
        assert (await client.generate("hi", max_tokens=2)).answers
        assert await client.tokenize("hi")
    async with AsyncClient(guarded.address) as client:
        with pytest.raises(Unauthenticated):
            await client.models()


async def test_bytes_that_are_no_message_are_the_client_s_mistake(service: Service) -> None:
    """Random bytes, and messages that were cut off or changed: an answer or INVALID_ARGUMENT, never INTERNAL."""
    rng = random.Random(7)
    whole = pb.GenerateRequest(
        text="hello there", n=2, request_id="r", sampling=pb.SamplingParams(max_tokens=3, stop=["x"], logit_bias={1: 2})
    ).SerializeToString()
    samples = [rng.randbytes(rng.randrange(1, 40)) for _ in range(100)]
    samples += [whole[: rng.randrange(len(whole))] for _ in range(30)]
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        samples.append(bytes(changed))
    generate = service.channel.unary_stream("/baton.v1.Inference/Generate")
    tokenize = service.channel.unary_unary("/baton.v1.Inference/Tokenize")
    refused = 0
    for sample in samples:
        try:
            async for _ in generate(sample, timeout=20):
                pass
            await tokenize(sample, timeout=20)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), (sample, error)
            refused += 1
    assert refused > 100
    assert not service.generator.running
    assert [message async for message in service.stub.Generate(REQUEST)]
