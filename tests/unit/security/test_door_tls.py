"""TLS at the doors of a whole router, over real sockets: right and wrong certificates, new ones, clients that stall."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from baton.cli import main
from baton.client import AsyncClient
from baton.tls import ClientTls
from engine.core.errors import InvalidRequest, Unavailable
from engine.wire.tls import TlsFiles
from router.server import RunningRouter
from router.server_config import GatewayConfig, RouterServerConfig, RouterTls, tls_of
from tests.fakes.certificates import Authority
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.text_models import write_family
from tests.fakes.workers import worker_info

WAIT_S = 20.0
CONNECTIONS = 200
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority("theirs")


@pytest.fixture
def config(tmp_path: Path) -> RouterServerConfig:
    folder = write_family(tmp_path, "byte_level")
    return RouterServerConfig(
        model=folder, model_name="tiny", cluster_key=b"a secret of this test", port=0, grpc_port=0
    )


@asynccontextmanager
async def serving(config: RouterServerConfig, files: TlsFiles) -> AsyncIterator[RunningRouter]:
    """With a fake worker that is ready."""
    async with FakeCluster() as cluster:
        worker = await cluster.start(worker_info("w"))
        router = await asyncio.to_thread(RunningRouter, replace(config, gateway=GatewayConfig(tls=RouterTls(files))))
        await asyncio.to_thread(router.add_worker, worker.info.address)
        try:
            async with asyncio.timeout(WAIT_S):
                while not await asyncio.to_thread(lambda: router.status().ready):
                    await asyncio.sleep(0)
            yield router
        finally:
            await asyncio.to_thread(router.stop)
        assert not router.died


def client_of(authority: Authority, folder: Path, shows: Authority | None = None, **issued: bool) -> ClientTls:
    """A client that trusts `authority` and shows a certificate of `shows`."""
    files = (shows or authority).write(folder, name="client", **issued)
    ca = folder / "trusted.crt"
    ca.write_bytes(authority.pem)
    return ClientTls(ca, files.cert, files.key) if shows else ClientTls(ca)


def http(router: RunningRouter, tls: ClientTls) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://localhost:{router.port}", verify=tls.context(), timeout=WAIT_S)


async def answers(router: RunningRouter, tls: ClientTls) -> tuple[bool, bool]:
    """Whether HTTP and gRPC serve this client."""
    async with http(router, tls) as client:
        try:
            by_http = (await client.get("/health")).status_code == 200
        except httpx.TransportError:
            by_http = False
    async with AsyncClient(f"localhost:{router.grpc_port}", credentials=tls.channel()) as rpc:
        try:
            by_rpc = bool(await rpc.models())
        except Unavailable:
            by_rpc = False
    return by_http, by_rpc


async def test_clients_check_the_service(
    config: RouterServerConfig, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    files = replace(ours.write(tmp_path / "server"), ca=None)
    async with serving(config, files) as router:
        assert await answers(router, client_of(ours, tmp_path / "a")) == (True, True)
        assert await answers(router, client_of(theirs, tmp_path / "b")) == (False, False)
        async with httpx.AsyncClient(timeout=WAIT_S) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(f"http://127.0.0.1:{router.port}/health")


async def test_the_service_checks_clients(
    config: RouterServerConfig, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    async with serving(config, ours.write(tmp_path / "server")) as router:
        assert await answers(router, client_of(ours, tmp_path / "right", ours)) == (True, True)
        for name, client in (
            ("none", client_of(ours, tmp_path / "none")),
            ("foreign", client_of(ours, tmp_path / "foreign", theirs)),
            ("expired", client_of(ours, tmp_path / "expired", ours, expired=True)),
        ):
            assert await answers(router, client) == (False, False), name


async def test_certificates_are_replaced_while_connections_go_on(
    config: RouterServerConfig, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    before, after = client_of(ours, tmp_path / "before", ours), client_of(theirs, tmp_path / "after", theirs)
    files = ours.write(tmp_path / "server")
    async with serving(config, files) as router, http(router, before) as old:
        async with AsyncClient(f"localhost:{router.grpc_port}", credentials=before.channel()) as old_rpc:
            assert (await old.get("/health")).status_code == 200 and await old_rpc.models()
            theirs.write(tmp_path / "server")
            assert await answers(router, after) == (True, True)
            assert await answers(router, before) == (False, False)
            trusts_new_shows_old = client_of(theirs, tmp_path / "mixed", ours)
            assert await answers(router, trusts_new_shows_old) == (False, False)
            assert (await old.get("/health")).status_code == 200 and await old_rpc.models()


async def test_clients_that_stall_hold_up_nobody(config: RouterServerConfig, tmp_path: Path, ours: Authority) -> None:
    """Silent before the handshake, in its midst, after it, within a head and within a body."""
    files = replace(ours.write(tmp_path / "server"), ca=None)
    tls = client_of(ours, tmp_path / "client")
    open_ended = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"  # the beginning of a hello of 512 bytes
    async with serving(config, files) as router:
        writers = []
        for index in range(CONNECTIONS):
            raw = index % 5 < 2
            context = None if raw else tls.context()
            _, writer = await asyncio.open_connection("localhost", router.port, ssl=context)
            writer.write((b"", hello, b"", open_ended, open_ended + b"content-length: 9\r\n\r\n{")[index % 5])
            await writer.drain()
            writers.append(writer)
            if raw:
                _, writer = await asyncio.open_connection("127.0.0.1", router.grpc_port)
                writer.write(hello[: index % 9])
                writers.append(writer)
        async with http(router, tls) as client:
            body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            too_long = await client.post("/v1/completions", content=b" " * ((16 << 20) + 1), headers=JSON)
            assert too_long.status_code == 413
        assert await answers(router, tls) == (True, True)
        for writer in writers:
            writer.transport.abort()


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["baton", *args])
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/exit\n"))
    with pytest.raises(SystemExit) as exited:
        main()
    return int(exited.value.code or 0)


async def test_commands_over_tls(
    config: RouterServerConfig,
    tmp_path: Path,
    ours: Authority,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = client_of(ours, tmp_path / "client", ours)
    shown = ("--tls-ca", str(client.ca), "--tls-cert", str(client.cert), "--tls-key", str(client.key))
    async with serving(config, ours.write(tmp_path / "server")) as router:
        target = ("--target", f"localhost:{router.grpc_port}", "--max-tokens", "4")
        url = ("--url", f"https://localhost:{router.port}")
        for command in (("generate", "hi", *target), ("chat", *target), ("status", *url)):
            assert await asyncio.to_thread(run, monkeypatch, *shown, *command) == 0, capsys.readouterr()
        assert "ready; 0 requests run" in capsys.readouterr().out
        assert await asyncio.to_thread(run, monkeypatch, "--tls-ca", str(client.ca), "status", *url) == 1
        for name, path in (("CA", client.ca), ("CERT", client.cert), ("KEY", client.key)):
            monkeypatch.setenv(f"BATON_TLS_{name}", str(path))
        assert await asyncio.to_thread(run, monkeypatch, "status", *url) == 0


def test_files_that_cannot_be_used_are_one_clear_error(config: RouterServerConfig, tmp_path: Path) -> None:
    missing = TlsFiles.folder(tmp_path / "nowhere")
    for tls in (RouterTls(clients=missing), RouterTls(cluster=missing)):
        with pytest.raises(InvalidRequest, match=r"TLS files .*nowhere"):
            RunningRouter(replace(config, gateway=GatewayConfig(tls=tls)))
    with pytest.raises(InvalidRequest, match="needs its key"):
        tls_of(tmp_path, None, None, None)
    with pytest.raises(InvalidRequest, match="needs --tls-cert"):
        tls_of(None, None, tmp_path, None)
