"""Workers found by name: with a resolver that the test holds, then with the machine's own over 127.0.0.x."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

import router.server
from engine.core.errors import InvalidRequest, Unavailable
from router.discovery import Discovery, WorkerName, resolve
from router.roster import PATIENCE
from router.server import RunningRouter
from router.server_config import RouterServerConfig
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.text_models import write_family
from tests.fakes.workers import worker_info

NAME = WorkerName("baton-workers", 5001)
WAIT_S = 20.0


@dataclass
class Service:
    """The router's side, written down."""

    connected: frozenset[str] = frozenset()
    said: list[str] = field(default_factory=list)

    def add_worker(self, address: str) -> None:
        self.said.append(f"+{address}")

    async def remove_worker(self, address: str, drain_s: float = 0.0) -> None:
        self.said.append(f"-{address}")


async def follow(service: Service, answers: list[frozenset[str] | None]) -> None:
    """Discovery over `answers` of the name service; None: it does not answer."""
    left, done = iter(answers), asyncio.Event()

    async def answer(name: WorkerName) -> frozenset[str]:
        assert name == NAME
        found = next(left, "end")
        if found == "end":
            done.set()
            await asyncio.Event().wait()
        if found is None:
            raise Unavailable("no answer")
        assert isinstance(found, frozenset)
        return found

    running = asyncio.create_task(Discovery(service, [NAME], answer, period_s=0.0).run())
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_workers_come_and_go_with_the_name() -> None:
    service = Service()
    a, b = frozenset(("a:1",)), frozenset(("b:1",))
    await follow(service, [a, a | b, *[b] * PATIENCE, a | b])
    assert service.said == ["+a:1", "+b:1", "-a:1", "+a:1"]


async def test_a_name_service_that_does_not_answer_changes_nothing() -> None:
    service = Service()
    await follow(service, [frozenset(("a:1",)), *[None] * 5 * PATIENCE])
    assert service.said == ["+a:1"]


@pytest.mark.parametrize("text", ["", "name", "name:", ":5001", "name:0", "name:65536", "name:port", "name:-1"])
def test_what_is_no_name_and_port_is_said(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not NAME:PORT"):
        WorkerName.parse(text)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([("10.0.0.1", 4), ("10.0.0.2", 4), ("10.0.0.1", 4)], {"10.0.0.1:5001", "10.0.0.2:5001"}),
        ([("fd00::1", 6), ("10.0.0.1", 4)], {"10.0.0.1:5001"}),
        ([("fd00::1", 6)], {"[fd00::1]:5001"}),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), set()),
    ],
)
async def test_what_the_machine_says(
    monkeypatch: pytest.MonkeyPatch, addresses: list[tuple[str, int]] | socket.gaierror, expected: set[str]
) -> None:
    def getaddrinfo(host: str, port: int, *_args: object, **_kind: object) -> list[tuple[object, ...]]:
        assert (host, port) == (NAME.host, NAME.port)
        if isinstance(addresses, socket.gaierror):
            raise addresses
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(families[version], socket.SOCK_STREAM, 6, "", (address, port)) for address, version in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await resolve(NAME) == expected


async def test_no_answer_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: object, **_kind: object) -> list[object]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Unavailable, match="baton-workers: try again"):
        await resolve(NAME)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(b"a secret of this test's cluster") as cluster:
        yield cluster


async def test_a_router_finds_the_workers_of_a_name_and_loses_one(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name with two addresses of this machine, real sessions; then one address is gone and its worker ends."""
    hosts, asked = ["127.0.0.2", "127.0.0.3"], socket.getaddrinfo

    def getaddrinfo(host: str, *args: int, **kind: int) -> list[tuple[object, ...]]:
        return [
            entry for address in (hosts if host == "workers" else [host]) for entry in asked(address, *args, **kind)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(router.server, "Discovery", lambda *args: Discovery(*args, period_s=0.02))
    one = await cluster.start(worker_info("one"), host=hosts[0])
    port = int(one.info.address.rpartition(":")[2])
    two = await cluster.start(worker_info("two"), port, host=hosts[1])
    config = RouterServerConfig(
        model=write_family(tmp_path, "byte_level"),
        model_name="tiny",
        cluster_key=b"a secret of this test's cluster",
        port=0,
        grpc_port=0,
        worker_names=(f"workers:{port}",),
    )
    running = await asyncio.to_thread(RunningRouter, config)
    try:
        await until(running, {"one": "ready", "two": "ready"})
        hosts.pop()
        await two.stop()
        await until(running, {"one": "ready"})
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=WAIT_S) as client:
            assert (await client.get("/live")).json() == {"live": True}
            assert (await client.get("/health")).status_code == 200
    finally:
        await asyncio.to_thread(running.stop)
    with pytest.raises(InvalidRequest):
        RunningRouter(replace(config, worker_names=("nonsense",)))


async def until(running: RunningRouter, expected: dict[str, str]) -> None:
    async with asyncio.timeout(WAIT_S):
        while {worker.info.id: worker.state for worker in running.status().workers} != expected:
            await asyncio.sleep(0.02)
