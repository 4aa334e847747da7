"""Every method of every service, called by somebody who knows nothing: none answers.

Methods come from the descriptors and routes from the application, so new ones are walked, too.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import grpc
import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass
from starlette.routing import Route

from engine.core.errors import InvalidRequest
from engine.runtime.config import EngineConfig
from engine.server.config import WorkerConfig
from engine.server.kv_events.config import parse_feed
from engine.wire import inference_pb2, kv_pb2, worker_pb2
from engine.wire.tls import TlsFiles
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.grpc import GrpcTransport
from router.http.auth import OPEN_PATHS
from router.server import RunningRouter
from router.server_config import GatewayConfig, RouterServerConfig
from tests.fakes.tenants import file_of
from tests.fakes.text_models import write_family
from tests.fakes.thread_worker import start_fake_worker
from tests.fakes.virtual_worker import KEY, int64_layout

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 20.0


@pytest.fixture
def config(tmp_path: Path) -> RouterServerConfig:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(file_of("acme"))
    folder = write_family(tmp_path, "byte_level")
    return RouterServerConfig(folder, "tiny", KEY, port=0, grpc_port=0, admin_port=0, gateway=GatewayConfig(tenants))


@pytest.fixture
async def router(config: RouterServerConfig) -> AsyncIterator[RunningRouter]:
    router = await asyncio.to_thread(RunningRouter, config)
    yield router
    await asyncio.to_thread(router.stop)


async def status_of(channel: grpc.aio.Channel, method: object) -> grpc.StatusCode:
    """What a call without credentials ends with. It has an empty message where the method takes just one.

    Where a client may write, nothing is written: gRPC's own client says INTERNAL when a write comes after the end.
    """
    path = f"/{method.containing_service.full_name}/{method.name}"  # type: ignore[attr-defined]
    empty = GetMessageClass(method.input_type)()  # type: ignore[attr-defined]
    if method.client_streaming:  # type: ignore[attr-defined]
        call = channel.stream_stream(path, type(empty).SerializeToString, bytes)(timeout=WAIT_S)
    else:
        call = channel.unary_stream(path, type(empty).SerializeToString, bytes)(empty, timeout=WAIT_S)
    status: grpc.StatusCode = await call.code()
    return status


def protos() -> dict[str, ModuleType]:
    """Each file of the protocol has an entry here, or the test of that fails."""
    return {"inference": inference_pb2, "worker": worker_pb2, "kv": kv_pb2}


def test_every_file_of_the_protocol_is_walked() -> None:
    assert {path.stem for path in (ROOT / "proto" / "baton" / "v1").glob("*.proto")} == set(protos())


async def test_no_method_answers_a_stranger(router: RunningRouter) -> None:
    worker = await asyncio.to_thread(start_fake_worker, "decode")
    pages = GrpcTransport(HostPool(int64_layout(), 4), "pages@1", KEY)
    served_at = {
        "baton.v1.Inference": f"127.0.0.1:{router.grpc_port}",
        "baton.v1.Worker": worker.info.address,
        "baton.v1.PageTransfer": pages.descriptor().decode(),
    }
    heard = {}
    try:
        for module in protos().values():
            for service in module.DESCRIPTOR.services_by_name.values():
                async with grpc.aio.insecure_channel(served_at[service.full_name]) as channel:
                    for method in service.methods:
                        heard[f"{service.name}.{method.name}"] = await status_of(channel, method)
    finally:
        pages.close()
        await asyncio.to_thread(worker.stop)
    assert len(heard) >= 7
    assert heard == dict.fromkeys(heard, grpc.StatusCode.UNAUTHENTICATED)


def routes_of(document: dict[str, dict[str, object]]) -> Iterator[tuple[str, str]]:
    for path, methods in document.items():
        yield from ((path, method) for method in methods)


async def test_no_route_answers_a_stranger_but_those_that_say_so(router: RunningRouter) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=WAIT_S) as client:
        document = (await client.get("/openapi.json")).json()["paths"]
        answers = {
            path: (await client.request(method, path)).status_code
            for path, method in routes_of(document)
            if path not in OPEN_PATHS
        }
        for path in ("/status", "/status/prefixes", "/docs", "/admin/workers", "/no/such/path"):
            answers[path] = (await client.get(path)).status_code
        assert len(answers) >= 6 and answers == dict.fromkeys(answers, 401)
        shown = [(await client.get(path)).text for path in sorted(OPEN_PATHS)]
    assert not any(KEY.decode("latin-1") in text or "acme" in text for text in shown)


async def test_the_admin_door_answers_the_cluster_key_only(router: RunningRouter) -> None:
    from router.admin import create_admin_app

    app = create_admin_app(router._server.service, KEY, str)  # type: ignore[union-attr, arg-type]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.admin_port}", timeout=WAIT_S) as client:
        routes = [route for route in app.routes if isinstance(route, Route)]
        assert len(routes) >= 5
        for route in routes:
            for method in route.methods or ():
                assert (await client.request(method, route.path)).status_code == 401, route.path


def test_a_feed_that_anybody_can_read_does_not_leave_the_host_of_an_encrypted_cluster() -> None:
    tls, engine = TlsFiles.folder(Path("/etc/tls")), EngineConfig(model="m")
    with pytest.raises(InvalidRequest, match="curve://"):
        WorkerConfig(engine, "w", KEY, tls=tls, kv_events=parse_feed("tcp://10.0.0.1:5000"))
    for fine in ("curve://10.0.0.1:5000", "tcp://127.0.0.1:5000", ""):
        WorkerConfig(engine, "w", KEY, tls=tls, kv_events=parse_feed(fine))
