"""A whole router with tenants, over real sockets on both sides: caches, a changed file, a drain, traces."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from engine.core.errors import InvalidRequest
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from router.config import AdmissionConfig, RouterConfig
from router.server import RunningRouter
from router.server_config import GatewayConfig, RouterServerConfig
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.tenants import bearer, file_of
from tests.fakes.text_models import write_family
from tests.fakes.workers import worker_info

WAIT_S = 20.0
PROMPT = list(range(1, 41))
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "seed": 3}


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(file_of("acme", "beta") + file_of("ops", operators=("ops",)))
    return path


@pytest.fixture
def config(tmp_path: Path, tenants: Path) -> RouterServerConfig:
    return RouterServerConfig(
        model=write_family(tmp_path, "byte_level"), model_name="tiny", cluster_key=b"a secret of this test",
        port=0, grpc_port=0, gateway=GatewayConfig(tenants),
    )  # fmt: skip


@dataclass
class Running:
    """A router with a prefill and a decode worker."""

    router: RunningRouter
    http: httpx.AsyncClient

    async def complete(self, tenant: str, number: int = 0, **given: object) -> httpx.Response:
        return await self.http.post("/v1/completions", json=BODY | given, headers=bearer(tenant, number))

    async def num_pages(self) -> float:
        """That the router knows to be cached."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("baton_router_worker_pages{"))

    async def knows_more_pages_than(self, known: float) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.num_pages() <= known:
                await asyncio.sleep(0.01)

    async def cached(self, tenant: str, number: int = 0) -> int:
        answered = await self.complete(tenant, number)
        assert answered.status_code == 200, answered.text
        cached = answered.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert answered.headers["x-baton-cached-tokens"] == str(cached)
        return int(cached)


@asynccontextmanager
async def serving(config: RouterServerConfig) -> AsyncIterator[Running]:
    async with FakeCluster() as cluster:
        router = RunningRouter(config)
        url = f"http://127.0.0.1:{router.port}"
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S) as client:
            for name, role in (("p", "prefill"), ("d", "decode")):
                worker = await cluster.start(worker_info(name, roles=(role,)))
                await asyncio.to_thread(router.add_worker, worker.info.address)
            async with asyncio.timeout(WAIT_S):
                while (await client.get("/health")).status_code != 200:
                    await asyncio.sleep(0.02)
            yield Running(router, client)
        await asyncio.to_thread(router.stop)
        assert not router.died


async def test_a_tenant_s_cached_prompts_are_its_own(config: RouterServerConfig) -> None:
    async with serving(config) as running:
        assert await running.cached("acme") == 0
        await running.knows_more_pages_than(0)
        assert await running.cached("acme", number=1) == 36, "two keys of one tenant share"
        known = await running.num_pages()
        assert await running.cached("beta") == 0, "another tenant learns nothing of it"
        await running.knows_more_pages_than(known)
        assert await running.cached("beta") == 36
        stub_target = f"127.0.0.1:{running.router.grpc_port}"
        async with grpc.aio.insecure_channel(stub_target) as channel:
            request = pb.GenerateRequest(tokens=pb.TokenIds(ids=PROMPT), sampling=pb.SamplingParams(max_tokens=3))
            for tenant, expected in (("ops", 0), ("acme", 36)):
                call = InferenceStub(channel).Generate(request, metadata=tuple(bearer(tenant).items()))
                last = [message async for message in call][-1]
                trailing = dict(await call.trailing_metadata())
                assert last.usage.cached_tokens == expected == int(trailing["x-baton-cached-tokens"])
                parts = [float(trailing[f"x-baton-{part}-ms"]) for part in ("queue", "admit", "prefill", "deliver")]
                assert float(trailing["x-baton-ttft-ms"]) == pytest.approx(sum(parts), abs=0.003)
        metrics = (await running.http.get("/metrics")).text
        assert 'baton_tenant_requests_total{outcome="finished",tenant="acme"} 3.0' in metrics


async def test_a_changed_file_holds_without_a_restart(config: RouterServerConfig, tenants: Path) -> None:
    async with serving(config) as running:
        assert (await running.complete("newcomer")).status_code == 401
        tenants.write_text(file_of("acme", "newcomer"))
        async with asyncio.timeout(WAIT_S):
            while (await running.complete("newcomer")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await running.complete("beta")).status_code == 401, "who is not named any more is out"
        tenants.write_text("[tenants.acme")
        with pytest.raises(InvalidRequest, match="is not TOML"):
            await asyncio.to_thread(running.router.reload_tenants)
        assert (await running.complete("newcomer")).status_code == 200, "a broken file changes nothing"
        tenants.write_text(file_of("acme", lines="requests_per_s = 0.001"))
        await asyncio.to_thread(running.router.reload_tenants)
        answered = [(await running.complete("acme")).status_code for _ in range(2)]
        assert answered == [200, 429]


async def test_a_file_that_cannot_be_read_is_an_error_in_words(config: RouterServerConfig, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        await asyncio.to_thread(RunningRouter, replace(config, gateway=GatewayConfig(tmp_path / "nothing")))


async def test_a_router_that_leaves_lets_its_answers_end(config: RouterServerConfig, tenants: Path) -> None:
    config = replace(config, gateway=GatewayConfig(tenants, drain_notice_s=2.0))
    async with serving(config) as running:
        router, long = running.router, BODY | {"max_tokens": 300, "stream": True}
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{router.grpc_port}")
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        async with running.http.stream("POST", "/v1/completions", json=long, headers=bearer("acme")) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            router.ask_to_stop(drain_s=WAIT_S)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            health = await running.http.get("/health")
            assert (health.status_code, health.json()["detail"]) == (503, "the router is draining")
            refused = await running.complete("acme")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        assert await asyncio.to_thread(router.wait, WAIT_S) and not router.died
        with pytest.raises(httpx.ConnectError):
            await running.http.get("/health")
        await channel.close()


async def test_what_has_not_ended_in_time_is_cut_off_with_an_error(config: RouterServerConfig) -> None:
    async with serving(config) as running:
        long = BODY | {"max_tokens": 400, "stream": True}
        async with running.http.stream("POST", "/v1/completions", json=long, headers=bearer("acme")) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            running.router.ask_to_stop(drain_s=0.1)
            events = [json.loads(line.removeprefix("data: ")) async for line in lines if line.startswith("data: {")]
        assert events[-1]["error"]["message"] == "the router is stopping"
        assert await asyncio.to_thread(running.router.wait, WAIT_S)


@dataclass
class Collector:
    """What an OpenTelemetry collector was sent."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(data)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_request_is_one_trace(config: RouterServerConfig, tenants: Path, collector: Collector) -> None:
    config = replace(config, gateway=GatewayConfig(tenants, collector.url), policy="cost_always_hand_over")
    async with serving(config) as running:
        headers = bearer("acme") | {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        async with asyncio.timeout(WAIT_S):
            while True:
                answered = await running.http.post("/v1/completions", json=BODY, headers=headers)
                assert answered.status_code == 200
                if (answered.headers["x-baton-prefill-worker"], answered.headers["x-baton-decode-worker"]) == (
                    "p",
                    "d",
                ):
                    break
    request = [span for span in collector.spans if span.name == "request"][-1]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    parts = {span.name: span for span in collector.spans if span.parent_span_id == request.span_id}
    assert set(parts) == {"queue", "admit", "prefill", "deliver", "transfer", "first_step"}
    ttft_ns = sum(
        parts[name].end_time_unix_nano - parts[name].start_time_unix_nano
        for name in ("queue", "admit", "prefill", "deliver")
    )
    assert ttft_ns / 1e6 == pytest.approx(float(answered.headers["x-baton-ttft-ms"]), abs=0.02)
    assert parts["transfer"].start_time_unix_nano == pytest.approx(parts["prefill"].end_time_unix_nano, abs=2000)
    attributes = {pair.key: pair.value for pair in request.attributes}
    assert attributes["baton.tenant"].string_value == "acme"
    assert attributes["gen_ai.usage.input_tokens"].int_value == len(PROMPT)


async def test_what_would_come_too_late_is_refused_at_once(config: RouterServerConfig) -> None:
    async with serving(config) as running:
        assert (await running.complete("acme")).status_code == 200
        headers = bearer("acme") | {"x-baton-ttft-slo-ms": "0.001"}
        refused = await running.http.post("/v1/completions", json=BODY, headers=headers)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert "later than 1e-06 s" in refused.json()["error"]["message"]
        metrics = (await running.http.get("/metrics")).text
        assert 'baton_router_requests_total{outcome="resource_exhausted"} 1.0' in metrics


async def test_a_flood_of_one_tenant_holds_up_only_itself(config: RouterServerConfig) -> None:
    config = replace(config, limits=RouterConfig(admission=AdmissionConfig(max_running=2)))
    ended: list[str] = []

    async def ask(running: Running, tenant: str, number: int) -> None:
        assert (await running.complete(tenant, prompt=[*PROMPT, number])).status_code == 200
        ended.append(tenant)

    async with serving(config) as running:
        flood = [asyncio.create_task(ask(running, "acme", number)) for number in range(30)]
        async with asyncio.timeout(WAIT_S):
            while len(ended) < 3:  # the flood is under way, and most of it waits
                await asyncio.sleep(0.005)
        before = len(ended)
        await ask(running, "beta", 0)
        assert len(ended) - before < 8, "nearly all of the flood is still to come"
        await asyncio.gather(*flood)
