"""Both doors over a fake router, on an event loop in another thread, for clients that block."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from prometheus_client import CollectorRegistry

from router.doors.config import DoorConfig
from router.http.app import create_app
from router.http.prompt_server import PromptServer
from router.rpc.server import add_inference, make_server
from router.text.model import ServedModel
from tests.fakes.generator import FakeGenerator, FakeStatus


@dataclass
class Addresses:
    """Where the doors are."""

    target: str
    url: str


class _Doors:
    def __init__(self, generator: FakeGenerator, model: ServedModel, status: FakeStatus) -> None:
        self._parts = (generator, model, status)
        self._started = threading.Event()
        self.addresses = Addresses("", "")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="doors")

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        generator, model, status = self._parts
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = DoorConfig()
        rpc = make_server(config)
        add_inference(rpc, generator, model, config)
        port = rpc.add_insecure_port("127.0.0.1:0")
        await rpc.start()
        listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(generator, model, status, config, CollectorRegistry())
        http = PromptServer(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        self.addresses = Addresses(f"127.0.0.1:{port}", f"http://127.0.0.1:{listener.getsockname()[1]}")
        self._started.set()
        await self._stop.wait()
        http.stop()
        await asyncio.gather(serving, rpc.stop(0))


@contextmanager
def doors_in_thread(generator: FakeGenerator, model: ServedModel, status: FakeStatus) -> Iterator[Addresses]:
    """Serve until the block ends."""
    doors = _Doors(generator, model, status)
    doors.start()
    try:
        yield doors.addresses
    finally:
        doors.stop()
