"""Keys, limits and rights at the HTTP door, over real sockets."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from engine.core.errors import InvalidRequest, Unavailable
from engine.core.types import Grammar
from engine.grammar.check import GrammarChecker
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.doors.request_log import RequestLog
from router.gateway.record import RequestRecord
from router.gateway.tenants import RateLimit, Tenant
from router.logs import JsonFormatter
from router.text.model import ServedModel
from tests.fakes.tenants import bearer, key_of, table_of
from tests.unit.http.conftest import MAX_BODY_BYTES, Service, running

BODY = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "ignore_eos": True}
STRICT = Tenant("strict", weight=3.0, max_priority=2, requests=RateLimit(0.01, 2.0), tokens=RateLimit(1.0, 1000.0))
TABLE = table_of(Tenant("acme"), STRICT, Tenant("narrow", max_concurrent=1), Tenant("ops"), operators=("ops",))


class Records(list[RequestRecord]):
    """A sink that keeps everything."""

    def done(self, record: RequestRecord) -> None:
        self.append(record)


@asynccontextmanager
async def service_of(tiny: ServedModel, *sinks: Records | RequestLog) -> AsyncIterator[Service]:
    config = DoorConfig(max_body_bytes=MAX_BODY_BYTES, max_sequences=8)
    async with running(tiny, config, Gateway(TABLE, sinks)) as service:
        service.answers("a long answer")
        yield service


@pytest.fixture
async def service(tiny: ServedModel) -> AsyncIterator[Service]:
    async with service_of(tiny) as service:
        yield service


async def complete(service: Service, tenant: str, **given: object) -> httpx.Response:
    return await service.http.post("/v1/completions", json=BODY | given, headers=bearer(tenant))


async def test_without_a_key_nobody_is_served(service: Service) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        refused = await service.http.post(path, content=b"{" * 100)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["code"] == "invalid_api_key" and refused.headers["x-request-id"]
    for path in ("/v1/models", "/v1/models/tiny", "/status", "/docs", "/anything"):
        assert (await service.http.get(path)).status_code == 401
    wrong = await service.http.get("/v1/models", headers={"authorization": f"Bearer {key_of('acme')}0"})
    assert wrong.status_code == 401
    both = [("authorization", bearer(tenant)["authorization"]) for tenant in ("acme", "ops")]
    assert (await service.http.get("/v1/models", headers=both)).status_code == 401, "nobody knows which one is meant"
    assert not service.generator.calls


async def test_probes_and_scrapers_need_none(service: Service) -> None:
    assert [(await service.http.get(path)).status_code for path in ("/health", "/metrics")] == [200, 200]


async def test_a_key_opens_the_door(service: Service) -> None:
    assert (await complete(service, "acme")).status_code == 200
    assert service.generator.calls[-1].tenant == "acme"
    client = openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key_of("acme"), http_client=service.http)
    assert (await client.models.list()).data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError):
        await service.openai.models.list()


async def test_the_status_page_is_for_operators(service: Service) -> None:
    refused = await service.http.get("/status", headers=bearer("acme"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert (await service.http.get("/status/anything", headers=bearer("acme"))).status_code == 403
    assert (await service.http.get("/status", headers=bearer("ops"))).status_code == 200
    assert (await service.http.get("/statuses", headers=bearer("acme"))).status_code == 404


async def test_rights_follow_from_the_key_alone(service: Service) -> None:
    for asked, given in ((-5, 2), (7, 7), (None, 2)):
        service.generator.calls.clear()
        await complete(service, "strict", priority=asked, max_tokens=1)
        for call in service.generator.calls:
            assert (call.priority, call.weight, call.tenant) == (given, 3.0, "strict")
    await complete(service, "acme", priority=-5)
    assert service.generator.calls[-1].priority == -5
    refused = await complete(service, "acme", cache_salt="theirs")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


async def test_requests_over_the_rate_are_told_when_to_come_back(service: Service) -> None:
    answered = [await complete(service, "strict") for _ in range(3)]
    assert [response.status_code for response in answered] == [200, 200, 429]
    assert [response.headers["x-ratelimit-remaining-requests"] for response in answered] == ["1", "0", "0"]
    last = answered[-1]
    assert last.headers["x-ratelimit-limit-requests"] == "2" and last.headers["x-ratelimit-limit-tokens"] == "1000"
    assert 95 <= int(last.headers["retry-after"]) <= 100
    assert 95_000 <= int(last.headers["retry-after-ms"]) <= 100_000
    assert last.headers["x-ratelimit-reset-requests"].startswith("3m")
    assert last.json()["error"]["type"] == "rate_limit_error" and last.json()["error"]["code"] == "rate_limit_exceeded"
    assert (await complete(service, "acme")).status_code == 200, "others are not concerned"
    assert "x-ratelimit-limit-requests" not in (await complete(service, "acme")).headers


async def test_tokens_are_counted_as_they_were_used(service: Service) -> None:
    first = await complete(service, "strict", max_tokens=300)
    usage = first.json()["usage"]
    assert usage["total_tokens"] < 50
    left = int(first.headers["x-ratelimit-remaining-tokens"])
    assert 0 <= left - (1000 - usage["total_tokens"]) <= 2
    service.generator.pause_after = 1
    async with service.http.stream(
        "POST", "/v1/completions", json=BODY | {"max_tokens": 300, "stream": True}, headers=bearer("strict")
    ) as stream:
        assert int(stream.headers["x-ratelimit-remaining-tokens"]) <= left - 300, "reserved while it runs"


async def test_requests_at_once(service: Service) -> None:
    service.generator.pause_after = 1
    held = asyncio.create_task(complete(service, "narrow"))
    await service.generator.paused.wait()
    assert (await complete(service, "narrow")).status_code == 429
    service.generator.resume.set()
    assert (await held).status_code == 200
    assert (await complete(service, "narrow")).status_code == 200


async def test_a_client_that_leaves_gives_its_place_back(service: Service) -> None:
    service.generator.pause_after = 1
    async with service.http.stream("POST", "/v1/completions", json=BODY | {"stream": True}, headers=bearer("narrow")):
        assert (await complete(service, "narrow")).status_code == 429
    await service.generator.idle.wait()
    service.generator.pause_after = None
    async with asyncio.timeout(10):
        while (await complete(service, "narrow")).status_code != 200:
            await asyncio.sleep(0)


@pytest.mark.parametrize(("header", "expected"), [("250", 0.25), (None, None)])
async def test_a_client_s_own_objective(service: Service, header: str | None, expected: float | None) -> None:
    headers = bearer("acme") | ({} if header is None else {"x-baton-ttft-slo-ms": header})
    await service.http.post("/v1/completions", json=BODY, headers=headers)
    assert service.generator.calls[-1].ttft_slo_s == expected
    for nonsense in ("soon", "-1", "0", "nan", "inf"):
        headers = bearer("acme") | {"x-baton-ttft-slo-ms": nonsense}
        assert (await service.http.post("/v1/completions", json=BODY, headers=headers)).status_code == 400


async def test_each_request_is_recorded_once_with_its_outcome(tiny: ServedModel) -> None:
    records = Records()
    async with service_of(tiny, records) as service:
        await complete(service, "acme", prompt=["hi", "hi there"], n=2)
        await complete(service, "acme", model="unknown")  # refused before anything of it could run
        service.generator.error = Unavailable("no worker")
        await complete(service, "acme")
        for _ in range(3):
            await complete(service, "strict")
        service.generator.error = None
        service.generator.pause_after = 1
        async with service.http.stream("POST", "/v1/completions", json=BODY | {"stream": True}, headers=bearer("acme")):
            pass
        await service.generator.idle.wait()
        async with asyncio.timeout(10):
            while len(records) < 6:
                await asyncio.sleep(0)
    assert [record.outcome for record in records] == [
        "finished", "unavailable", "unavailable", "unavailable", "resource_exhausted", "cancelled"
    ]  # fmt: skip
    first = records[0]
    prompts = {len(call.tokens) for call in service.generator.calls[:4]}
    assert (first.tenant, first.num_sequences, first.prompt_tokens) == ("acme", 4, sum(prompts))
    assert first.output_tokens == 16 and first.cached_tokens == 6 and first.key_id
    timing = first.timing
    assert timing.ttft_s == pytest.approx(timing.queue_s + timing.admit_s + timing.prefill_s + timing.deliver_s)


async def test_the_log_has_no_secret_and_no_text(tiny: ServedModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with service_of(tiny, RequestLog()) as service:
        service.answers("a private answer")
        given = BODY | {"prompt": "a private question", "stop": "never", "max_tokens": 40}
        headers = bearer("acme") | {"x-request-id": "mine-7", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        await service.http.post("/v1/completions", json=given, headers=headers)
    (record,) = [record for record in caplog.records if record.name == "baton.request"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["request_id"], line["tenant"], line["outcome"]) == ("mine-7", "acme", "finished")
    assert line["prefill_worker"] == "p0" and line["decode_worker"] == "d0" and line["output_tokens"] > 0
    parts = line["queue_ms"] + line["admit_ms"] + line["prefill_ms"] + line["deliver_ms"]
    assert line["ttft_ms"] == pytest.approx(parts, abs=0.003)
    for written in (caplog.text, json.dumps(line)):
        assert "private" not in written and key_of("acme").rpartition("_")[2] not in written
    assert "ttft_ms=" in record.getMessage()


async def test_a_slow_reader_holds_up_nobody(service: Service) -> None:
    """One client asks for much and reads nothing; meanwhile others get whole answers on the same event loop."""
    service.answers("word " * 1000)
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, (host, int(port)))
    body = json.dumps(BODY | {"stream": True, "max_tokens": 400, "n": 8, "logprobs": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key_of('acme')}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(slow, head.encode() + body)
    assert await loop.sock_recv(slow, 12) == b"HTTP/1.1 200"
    service.answers("short")
    for _ in range(20):
        assert (await complete(service, "acme", max_tokens=5)).status_code == 200
    metrics = (await service.http.get("/metrics")).text
    assert "baton_http_requests_open 2.0" in metrics, "the slow one's answer is not over"
    slow.close()
    async with asyncio.timeout(10):
        while "baton_http_requests_open 1.0" not in (await service.http.get("/metrics")).text:
            await asyncio.sleep(0)


class Checker(GrammarChecker):
    """Leaves every question open until the test answers it."""

    def __init__(self) -> None:
        super().__init__(Path(), 0)
        self.asked: list[tuple[str, Future[None]]] = []

    def check(self, grammar: Grammar) -> "Future[None]":
        self.asked.append((grammar.source, Future()))
        return self.asked[-1][1]


async def asked(checker: Checker, count: int) -> list[str]:
    """What the next questions are, once there are so many."""
    while len(checker.asked) < count:
        await asyncio.sleep(0)
    return [source for source, _ in checker.asked]


async def test_a_tenant_s_grammars_are_checked_one_after_the_other(tiny: ServedModel) -> None:
    checker = Checker()
    async with service_of(replace(tiny, grammars=checker)) as service:
        flood = [
            asyncio.create_task(complete(service, "acme", guided_regex="a" * n, ignore_eos=False)) for n in range(1, 4)
        ]
        await asked(checker, 1)
        other = asyncio.create_task(complete(service, "ops", guided_regex="b", ignore_eos=False))
        assert (await asked(checker, 2))[1] == "b", "it waits for one of the other tenant's at most"
        for place in range(4):
            await asked(checker, place + 1)
            checker.asked[place][1].set_result(None)
        assert [(await each).status_code for each in (*flood, other)] == [200] * 4


async def test_a_refused_grammar_is_a_request_used(tiny: ServedModel) -> None:
    checker = Checker()
    async with service_of(replace(tiny, grammars=checker)) as service:
        bad = [asyncio.create_task(complete(service, "strict", guided_regex=f"{n}(")) for n in range(4)]
        for place in range(2):
            await asked(checker, place + 1)
            checker.asked[place][1].set_exception(InvalidRequest("unclosed"))
        assert sorted([(await each).status_code for each in bad]) == [400, 400, 429, 429]
    assert len(checker.asked) == 2, "over the limit nothing is checked"
