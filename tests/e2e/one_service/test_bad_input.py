"""Nothing that a client sends disturbs another one, leaves a page behind, or goes without a clear answer."""

import asyncio
import json
from collections.abc import Iterator

import grpc
import httpx
import pytest

from deploy.spawned import Service
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, generate

pytestmark = pytest.mark.slow(seconds=60)

JSON = {"content-type": "application/json"}


@pytest.fixture
def http(quiet_service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=quiet_service.url, timeout=30) as client:
        yield client


@pytest.fixture
def model(http: httpx.Client) -> str:
    name: str = http.get("/v1/models").json()["data"][0]["id"]
    return name


BAD_FIELDS = [
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [1] * 600},
    {"prompt": [1] * 400, "max_tokens": 200},
    {"prompt": [1, 10**9]},
    {"prompt": [1, -1]},
    {"prompt": [1.5]},
    {"prompt": {"a": 1}},
    {"prompt": "x", "max_tokens": "many"},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "temperature": -1},
    {"prompt": "x", "temperature": "hot"},
    {"prompt": "x", "top_p": 7},
    {"prompt": "x", "n": 100_000},
    {"prompt": "x", "logprobs": 10_000},
    {"prompt": "x", "stop": [1]},
    {"prompt": "x", "logit_bias": {"hello": 1}},
    {"prompt": "x", "logit_bias": {"-1": 1}},
    {"prompt": "x", "seed": 1 << 64},
    {"prompt": "x", "best_of": 3},
    {"prompt": "x", "frobnicate": True},
    {"prompt": ["a"] * 100_000},
    {"prompt": [[1]] * 100_000},
    {"prompt": "x", "stop": ["a"] * 100_000},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda fields: json.dumps(fields)[:40])
def test_bad_fields_are_refused_in_words(http: httpx.Client, model: str, fields: dict[str, object]) -> None:
    for stream in (False, True):
        response = http.post("/v1/completions", json={"model": model, "stream": stream} | fields)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b"\xff\xfe{}", b'{"model": "m", "prompt": "\xc3\x28"}', b"", b'{"temperature": NaN}'],
)
def test_malformed_bodies_are_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_nan_temperature_is_refused(http: httpx.Client, model: str) -> None:
    body = json.dumps({"model": model, "prompt": "x", "temperature": float("nan")})
    response = http.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 400, response.text


def test_a_huge_body_is_refused_without_being_read(http: httpx.Client, model: str) -> None:
    response = http.post("/v1/completions", json={"model": model, "prompt": "x" * 50_000_000})
    assert response.status_code == 413, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/models/nothing", 404)])
def test_unknown_places(http: httpx.Client, path: str, status: int) -> None:
    response = http.get(path)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(),
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[])),
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 1 << 30])),
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[-1])),
        pb.GenerateRequest(text="x", sampling=pb.SamplingParams(temperature=float("nan"))),
        pb.GenerateRequest(text="x", sampling=pb.SamplingParams(top_p=2.0)),
        pb.GenerateRequest(text="x", n=100_000),
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[1] * 600)),
    ],
)
async def test_bad_grpc_requests(quiet_service: Service, request_: pb.GenerateRequest) -> None:
    async with connect(quiet_service.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in InferenceStub(channel).Generate(request_, timeout=30):
                pass
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details()


async def test_good_requests_run_undisturbed_beside_bad_ones(quiet_service: Service) -> None:
    """Each answer equals what it is alone, while bad requests and leaving clients come between."""
    prompts = [[index + 1] * (10 + 7 * index) for index in range(8)]
    async with connect(quiet_service.grpc) as channel, httpx.AsyncClient(base_url=quiet_service.url) as http:
        stub = InferenceStub(channel)
        alone = [(await generate(stub, prompt, temperature=0.0, max_tokens=30))[0].tokens for prompt in prompts]
        model = (await http.get("/v1/models")).json()["data"][0]["id"]

        async def bad(fields: dict[str, object]) -> int:
            return (await http.post("/v1/completions", json={"model": model} | fields)).status_code

        async def leaves(prompt: list[int]) -> None:
            call = stub.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=prompt[::-1])))
            await call.read()
            call.cancel()

        beside = asyncio.gather(*(bad(fields) for fields in BAD_FIELDS), *(leaves(prompt) for prompt in prompts))
        together = await asyncio.gather(*(generate(stub, p, temperature=0.0, max_tokens=30) for p in prompts))
        statuses = await beside
    assert [answers[0].tokens for answers in together] == alone
    assert {status for status in statuses if status is not None} == {400}
