"""The load generator against a small server that answers, refuses, breaks off, or is not there."""

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.serving import measure
from bench.workload import WorkloadConfig

USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


async def completions(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    mode = body["model"]
    if mode == "busy":
        return web.json_response({"error": {"message": "busy"}}, status=429)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    events: list[dict[str, object]] = [{"choices": [{"text": "x"}]} for _ in range(3)]
    if mode == "fails":
        events = [*events[:1], {"error": {"code": "unavailable", "message": "lost"}}]
    elif mode != "breaks":
        events.append({"choices": [], "usage": USAGE})
    for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    if mode == "good":
        await response.write(b"data: [DONE]\n\n")
    return response


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "good"}]})


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


LOAD = WorkloadConfig(rate=1000, num_requests=3, input_len=4, output_len=3)


async def test_good_answers_are_timed_and_counted(url: str) -> None:
    results = await measure(url, LOAD, model=None, timeout_s=10)
    assert [result.error for result in results] == [None] * 3
    for result in results:
        assert (result.input_tokens, result.output_tokens, result.cached_tokens) == (4, 3, 2)
        assert result.first_s is not None
        assert result.last_s is not None
        assert result.planned_s <= result.sent_s <= result.first_s <= result.last_s
        assert len(result.gaps_s) == 2


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("busy", "HTTP 429"),
        ("fails", "error event: unavailable"),
        ("breaks", "stream ended without [DONE]"),
    ],
)
async def test_every_kind_of_failure_is_a_failed_request(url: str, mode: str, error: str) -> None:
    results = await measure(url, LOAD, model=mode, timeout_s=10)
    assert {result.error for result in results} == {error}


async def test_a_short_answer_is_a_failure(url: str) -> None:
    longer = WorkloadConfig(rate=1000, num_requests=1, input_len=4, output_len=9)
    (result,) = await measure(url, longer, model="good", timeout_s=10)
    assert result.error == "answer cut short"
