"""A whole router in its thread, over real sockets on both sides, with fake workers behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from engine.core.errors import CheckpointError, Unavailable
from router.server import RunningRouter, Sockets
from router.server_config import RouterServerConfig
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.text_models import write_family
from tests.fakes.workers import worker_info

KEY = b"a secret of this test's cluster"
WAIT_S = 20.0


@pytest.fixture
def config(tmp_path: Path) -> RouterServerConfig:
    folder = write_family(tmp_path, "byte_level")
    return RouterServerConfig(
        model=folder, model_name="tiny", cluster_key=KEY, port=0, grpc_port=0, admin_port=0, policy="cost"
    )


@pytest.fixture
async def router(config: RouterServerConfig) -> AsyncIterator[RunningRouter]:
    router = RunningRouter(config)
    yield router
    await asyncio.to_thread(router.stop)
    assert not router.died


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(KEY) as cluster:
        yield cluster


@pytest.fixture
async def client(router: RunningRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=WAIT_S) as client:
        yield client


@pytest.fixture
async def admin(router: RunningRouter) -> AsyncIterator[httpx.AsyncClient]:
    url, key = f"http://127.0.0.1:{router.admin_port}", {"authorization": f"Bearer {KEY.decode()}"}
    async with httpx.AsyncClient(base_url=url, headers=key, timeout=WAIT_S) as client:
        yield client


async def until_ready(client: httpx.AsyncClient, ready: bool = True) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await client.get("/health")).status_code != (200 if ready else 503):
            await asyncio.sleep(0.02)


async def complete(client: httpx.AsyncClient) -> str:
    prompt = [1, 2, 3, 4, 5]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "seed": 3}
    answered = await client.post("/v1/completions", json=body)
    assert answered.status_code == 200, answered.text
    usage = answered.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 12)
    return str(answered.json()["choices"][0]["text"])


async def test_workers_are_added_and_removed_while_it_serves(
    cluster: FakeCluster, client: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    assert (await client.get("/health")).status_code == 503
    worker = await cluster.start(worker_info("w"))
    assert (await admin.post("/admin/workers", json={"address": worker.info.address})).status_code == 202
    await until_ready(client)
    assert await complete(client) == await complete(client)
    listed = (await admin.get("/admin/workers")).json()["workers"]
    assert listed == [{"id": "w", "address": worker.info.address, "state": "ready", "detail": "", "requests": 0}]
    assert (
        await admin.delete("/admin/workers", params={"address": worker.info.address, "drain_s": 1})
    ).status_code == 200
    await until_ready(client, ready=False)
    assert (await admin.delete("/admin/workers", params={"address": worker.info.address})).status_code == 404
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("key", [None, "wrong", KEY.decode()[:-1], KEY.decode() + "x"])
async def test_the_admin_port_needs_the_key(admin: httpx.AsyncClient, key: str | None) -> None:
    admin.headers = httpx.Headers({} if key is None else {"authorization": f"Bearer {key}"})
    for answered in (
        await admin.get("/admin/workers"),
        await admin.post("/admin/workers", json={"address": "a:1"}),
        await admin.delete("/admin/workers"),
        await admin.post("/admin/drain", json={"worker": "w", "timeout_s": 1}),
    ):
        assert answered.status_code == 401


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"address": 5}', 400), (b'{"address": "no port"}', 400), (b" " * 5000, 413)],
)
async def test_the_admin_port_refuses_nonsense(admin: httpx.AsyncClient, content: bytes, status: int) -> None:
    assert (await admin.post("/admin/workers", content=content)).status_code == status
    assert (await admin.delete("/admin/workers", params={"address": "a:1", "drain_s": "soon"})).status_code == 400
    for body in ({"worker": "w"}, {"worker": 1, "timeout_s": 1}, {"worker": "w", "timeout_s": -1}, []):
        assert (await admin.post("/admin/drain", json=body)).status_code == 400
    assert (await admin.post("/admin/drain", json={"worker": "nobody", "timeout_s": 1})).status_code == 404


async def test_a_drain_is_asked_of_the_worker_and_shows(cluster: FakeCluster, admin: httpx.AsyncClient) -> None:
    worker = await cluster.start(worker_info("w"))
    await admin.post("/admin/workers", json={"address": worker.info.address})
    async with asyncio.timeout(WAIT_S):
        while (await admin.post("/admin/drain", json={"worker": "w", "timeout_s": 9})).status_code != 202:
            await asyncio.sleep(0.02)
        while (await admin.get("/admin/workers")).json()["workers"][0]["state"] != "draining":
            await asyncio.sleep(0.02)
    assert worker.worker.draining


async def test_what_is_where(cluster: FakeCluster, router: RunningRouter, admin: httpx.AsyncClient) -> None:
    worker = await cluster.start(worker_info("w"))
    router.add_worker(worker.info.address)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=WAIT_S) as client:
        await until_ready(client)
        for end in ("first", "second"):
            body = {"model": "tiny", "prompt": f"a common beginning and then a {end}", "max_tokens": 2}
            (await client.post("/v1/completions", json=body)).raise_for_status()
    async with asyncio.timeout(WAIT_S):
        while True:
            report = (await admin.get("/admin/prefixes")).raise_for_status().json()
            (shown,) = report["workers"]
            if shown["tokens"].get("device", 0) == 4 * len(worker.worker.cache.parents) > 0:
                break
            await asyncio.sleep(0.02)
    assert (shown["id"], shown["source"], shown["synced"]) == ("w", "session", True)
    (prefix,) = report["prefixes"]
    assert "a common beginning".startswith(prefix["begins"]) and prefix["begins"]
    assert prefix["uses"] == 2 and prefix["holders"] == {"w": prefix["tokens"]} and 20 <= prefix["tokens"] < 32
    assert (await admin.get("/admin/prefixes", params={"limit": 0})).json()["prefixes"] == []
    assert (await admin.get("/admin/prefixes", params={"limit": "all"})).status_code == 400
    key = {"authorization": "Bearer wrong"}
    assert (await admin.get("/admin/prefixes", headers=key)).status_code == 401


async def test_metrics_tell_what_happened(
    cluster: FakeCluster, router: RunningRouter, client: httpx.AsyncClient
) -> None:
    worker = await cluster.start(worker_info("w"))
    router.add_worker(worker.info.address)
    await until_ready(client)
    await complete(client)
    text = (await client.get("/metrics")).text
    for line in (
        'baton_router_requests_total{outcome="finished"} 1.0',
        'baton_router_attempts_total{route="whole"} 1.0',
        "baton_router_prompt_tokens_total 5.0",
        "baton_router_output_tokens_total 12.0",
        "baton_router_ttft_seconds_count 1.0",
        'baton_router_worker_ready{worker="w"} 1.0',
    ):
        assert line in text.splitlines()


async def test_stopping_ends_a_running_stream_at_once(
    cluster: FakeCluster, router: RunningRouter, client: httpx.AsyncClient
) -> None:
    worker = await cluster.start(worker_info("w"))
    router.add_worker(worker.info.address)
    await until_ready(client)
    body = {"model": "tiny", "prompt": [1, 2], "max_tokens": 500, "stream": True, "ignore_eos": True}
    async with client.stream("POST", "/v1/completions", json=body) as answered:
        lines = answered.aiter_lines()
        await anext(lines)
        async with asyncio.timeout(4.0):
            stopped = asyncio.create_task(asyncio.to_thread(router.stop))
            rest = [line async for line in lines]
            await stopped
    assert "[DONE]" not in rest[-1] and any("error" in line for line in rest)
    with pytest.raises(Unavailable):
        router.add_worker("a:1")


async def test_a_taken_port_or_a_missing_model_is_an_error_in_words(config: RouterServerConfig, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("port", "grpc_port", "admin_port"):
            with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
                RunningRouter(replace(config, **{name: port}))
    with pytest.raises(CheckpointError):
        RunningRouter(replace(config, model=tmp_path / "nothing"))


def test_http_connections_do_not_wait_for_acknowledgements(config: RouterServerConfig) -> None:
    """asyncio sends small pieces at once only on sockets that say that they are TCP."""
    sockets = Sockets.bind(config)
    try:
        assert {sock.proto for sock in (sockets.http, sockets.admin) if sock} == {socket.IPPROTO_TCP}
    finally:
        sockets.close()
