"""Mutual TLS inside a cluster, over real sockets: strangers are refused, and certificates change while it runs."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from deploy.door import AdminDoor
from engine.core.errors import TransferFailed, Unavailable
from engine.core.messages import Generate
from engine.runtime.config import EngineConfig
from engine.server.config import WorkerConfig
from engine.wire.tls import TlsFiles
from engine.wire.worker_client import WorkerClient, WorkerLost
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.base import Completion, OpStatus, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from router.config import RouterConfig
from router.server_config import RouterServerConfig
from tests.fakes.certificates import Authority
from tests.fakes.thread_worker import Worker, on_clock, start_fake_worker
from tests.fakes.virtual_worker import KEY, int64_layout, make_request
from tests.fakes.workers import worker_info

TIMEOUT_S = 20.0
REFUSED_S = 0.4
"""Long enough for a handshake on a free machine; that of who belongs here may take TIMEOUT_S."""


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority("theirs")


@asynccontextmanager
async def serving(tls: TlsFiles) -> AsyncIterator[Worker]:
    worker = await asyncio.to_thread(start_fake_worker, "decode", tls=tls)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)


async def connect(worker: Worker, tls: TlsFiles | None, timeout_s: float = TIMEOUT_S) -> WorkerClient:
    client = WorkerClient(worker.info.address, KEY, tls=tls, silence_s=TIMEOUT_S, connect_timeout_s=timeout_s)
    try:
        await client.connect()
    except WorkerLost:
        await client.close()
        raise
    return client


async def runs(client: WorkerClient, id: int) -> None:
    """A request goes through."""
    client.send(Generate(make_request(id, range(20), max_tokens=3, deadline_s=on_clock(60))))
    async with asyncio.timeout(TIMEOUT_S):
        async for frame in client.frames():
            if any(finished.id == id for finished in frame.finished):
                return


async def test_only_certificates_of_the_cluster_are_heard(tmp_path: Path, ours: Authority, theirs: Authority) -> None:
    right = ours.write(tmp_path / "right")
    wrong = {
        "no TLS": None,
        "another authority": theirs.write(tmp_path / "theirs"),
        "expired": ours.write(tmp_path / "expired", expired=True),
    }
    foreign = theirs.write(tmp_path / "mixed")  # trusts the worker, but shows another authority's certificate
    foreign.ca.write_bytes(ours.pem)  # type: ignore[union-attr]
    async with serving(ours.write(tmp_path / "worker")) as worker:
        for name, tls in {**wrong, "a stranger who trusts us": foreign}.items():
            with pytest.raises(WorkerLost):
                await connect(worker, tls, REFUSED_S)
                pytest.fail(name)
        client = await connect(worker, right)
        await runs(client, 1)
        await client.close()


async def test_who_shows_no_certificate_is_refused(tmp_path: Path, ours: Authority) -> None:
    async with serving(ours.write(tmp_path / "worker")) as worker:
        only_ca = grpc.ssl_channel_credentials(ours.pem)
        options = [("grpc.ssl_target_name_override", "baton")]
        async with grpc.aio.secure_channel(worker.info.address, only_ca, options=options) as channel:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.channel_ready(), REFUSED_S)


@pytest.mark.parametrize("fault", ["expired", "another name", "another authority"])
async def test_a_worker_with_a_wrong_certificate_is_not_spoken_to(
    tmp_path: Path, ours: Authority, theirs: Authority, fault: str
) -> None:
    if fault == "another authority":
        files = theirs.write(tmp_path / "worker")
    else:
        name = "elsewhere" if fault == "another name" else "baton"
        files = ours.write(tmp_path / "worker", name=name, expired=fault == "expired")
    async with serving(files) as worker:
        with pytest.raises(WorkerLost, match="cannot reach"):
            await connect(worker, ours.write(tmp_path / "router"), REFUSED_S)


async def test_certificates_are_replaced_while_sessions_go_on(
    tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    files, router = ours.write(tmp_path / "worker"), ours.write(tmp_path / "router")
    successor = theirs.write(tmp_path / "successor")
    async with serving(files) as worker:
        old = await connect(worker, router)
        await runs(old, 1)
        theirs.write(tmp_path / "worker")
        with pytest.raises(WorkerLost):
            await connect(worker, router, REFUSED_S)
        new = await connect(worker, successor)
        await runs(new, 2)
        await runs(old, 3)
        await old.close()
        await new.close()


async def test_files_that_do_not_fit_together_change_nothing(tmp_path: Path, ours: Authority) -> None:
    files, router = ours.write(tmp_path / "worker"), ours.write(tmp_path / "router")
    async with serving(files) as worker:
        good = files.key.read_bytes()
        files.key.write_bytes(ours.issue()[1])
        client = await connect(worker, router)
        await client.close()
        files.key.write_bytes(good)
        client = await connect(worker, router)
        await client.close()


def test_files_that_cannot_be_used_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"TLS files .*tls\.crt"):
        start_fake_worker("decode", tls=TlsFiles.folder(tmp_path))
    with pytest.raises(TransferFailed, match=r"TLS files .*tls\.crt"):
        GrpcTransport(HostPool(int64_layout(), 4), "a@1", KEY, tls=TlsFiles.folder(tmp_path))


def read_one(reader: GrpcTransport, source: GrpcTransport, op: int) -> Completion:
    info = replace(worker_info("source"), transports=((source.name, source.descriptor()),))
    reader.connect(info)
    reader.read_generations(op, peer_key("source", 1), [0])
    give_up_s = time.monotonic() + TIMEOUT_S
    while not (ended := reader.poll()):
        assert time.monotonic() < give_up_s
        threading.Event().wait(0.0005)  # as the transfer thread's own pace
    return ended[0]


def test_pages_move_between_certificates_of_the_cluster_only(
    tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    pool = HostPool(int64_layout(), 4)
    source = GrpcTransport(pool, peer_key("source", 1), KEY, tls=ours.write(tmp_path / "source"))
    files = ours.write(tmp_path / "reader")
    reader = GrpcTransport(HostPool(int64_layout(), 4), "reader@1", KEY, tls=files)
    plain = GrpcTransport(HostPool(int64_layout(), 4), "plain@1", KEY)
    try:
        assert read_one(reader, source, 1).status is OpStatus.DONE
        assert read_one(plain, source, 2).status is OpStatus.FAILED
        theirs.write(tmp_path / "reader")  # read again for each new connection
        assert read_one(reader, source, 3).status is OpStatus.FAILED
        theirs.write(tmp_path / "source")
        assert read_one(reader, source, 4).status is OpStatus.DONE
    finally:
        for transport in (reader, plain, source):
            transport.close()


def test_configs_do_not_show_the_key(tmp_path: Path) -> None:
    limits = RouterConfig(salt_key=KEY)
    configs = (
        WorkerConfig(EngineConfig(model="m"), "w", KEY),
        RouterServerConfig(tmp_path, "m", KEY, limits=limits),
        AdminDoor("http://127.0.0.1:1", KEY.decode()),
    )
    assert not [config for config in configs if KEY.decode() in repr(config)]
