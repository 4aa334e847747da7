"""`baton up`: a fleet from CONFIG.yaml, until SIGTERM, Ctrl-C or `baton down`."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import uvicorn

from deploy.cluster import EMBEDDED, ROUTER_RESOURCE, Cluster
from deploy.door import AdminDoor, publish, withdraw
from deploy.fleet.config import ROUTER_POOL, FleetConfig
from deploy.fleet.controller import Controller
from deploy.fleet.door import create_door
from deploy.fleet.memory import Memory
from deploy.fleet.plan import Phase
from deploy.fleet.recipes import Site
from deploy.fleet.scaling import autoscale
from deploy.fleet.take_over import namespace_of, take_over
from deploy.service import STOP_SIGNALS, Progress
from engine.core.errors import BatonError, Unavailable

CONTROL_HOST = "127.0.0.1"


def run(config: FleetConfig, *, ray_address: str, leave_running: bool = False) -> int:
    """Serve until told to stop, then end every process; with `leave_running` signals end this one alone.

    Returns:
        The exit status: 0 stopped, 2 could not start (one line on standard error says why).
    """
    say = Progress()
    stopping = _Stopping(leave_running)
    try:
        say("starting Ray" if ray_address == EMBEDDED else f"connecting to Ray at {ray_address}")
        with Cluster(ray_address, namespace=namespace_of(config.name)) as cluster:
            asyncio.run(_serve(config, cluster, say, stopping))
    except KeyboardInterrupt:
        pass
    except BatonError as error:
        say(f"baton: {error.message}")
        return 2
    say("stopped")
    return 0


async def _serve(config: FleetConfig, cluster: Cluster, say: Callable[[str], None], stopping: "_Stopping") -> None:
    stopping.listen()
    key, memory = cluster.key(), Memory(namespace_of(config.name))
    site = Site(key.encode(), cluster.num_gpus() > 0, cluster.offers(ROUTER_RESOURCE), only_node=cluster.embedded)
    controller = await take_over(config, site, memory, say)
    await _Fleet(controller, AdminDoor("", key, fleet=config.name, ray=cluster.address), say, stopping).serve()
    if not stopping.leaves:
        memory.clear()


class _Stopping:
    """The first signal ends the service in order, the second at once."""

    def __init__(self, leave_running: bool) -> None:
        """With `leave_running` signals leave it as it is."""
        self.event: asyncio.Event | None = None
        """From when the loop runs; before that a signal is a KeyboardInterrupt."""
        self.drain_s: float | None = None
        self.cut: asyncio.Event | None = None
        self.leaves = False
        self._leave_running = leave_running
        for number in STOP_SIGNALS:
            signal.signal(number, self._interrupt)

    def _interrupt(self, _signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    def listen(self) -> None:
        """From here on in the running loop."""
        self.event, self.cut = asyncio.Event(), asyncio.Event()
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        assert self.event is not None
        self.leaves = self._leave_running and not self.event.is_set()
        self.ask()

    def ask(self, drain_s: float | None = None) -> None:
        """End. Answers under way have `drain_s`; None: as the config says."""
        assert self.event is not None and self.cut is not None
        if self.event.is_set():
            self.cut.set()
        self.drain_s = drain_s
        self.event.set()


class _Server(uvicorn.Server):
    """Signals are none of its business."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave them."""
        return nullcontext()


class _Fleet:
    """Controller, control door and autoscaler, side by side."""

    def __init__(
        self, controller: Controller, door: AdminDoor, say: Callable[[str], None], stopping: _Stopping
    ) -> None:
        """`door` as it is published for each router."""
        self._controller, self._door, self._say, self._stopping = controller, door, say, stopping
        self._published: dict[int, AdminDoor] = {}
        """By HTTP port."""
        self._announced = False

    async def serve(self) -> None:
        """Returns when it was asked to stop and nothing is left."""
        config = self._controller.config
        sock = _bind(config.control_port)
        door = create_door(self._controller, self._door.key.encode(), self._stopping.ask)
        server = _Server(uvicorn.Config(door, log_config=None, access_log=False, lifespan="off", loop="none"))
        control = f"http://{CONTROL_HOST}:{sock.getsockname()[1]}"
        assert self._stopping.event is not None
        works = [self._controller.run(lambda: self._announce(control)), server.serve(sockets=[sock])]
        if config.autoscale is not None:
            works.append(autoscale(self._controller, config.autoscale, self._say))
        tasks = [asyncio.create_task(work) for work in works]
        asked = asyncio.create_task(self._stopping.event.wait())
        try:
            done, _ = await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {asked}:
                self._stopping.leaves = True  # a fault of the controller is no reason to end the service
                task.result()
        finally:
            await self._end(tasks, server)

    async def _end(self, tasks: list["asyncio.Task[None]"], server: uvicorn.Server) -> None:
        tasks[0].cancel()  # nobody is started from here on
        if self._stopping.leaves:
            self._say("leaving; the service goes on, and `baton up` takes it over again")
            self._controller.leave()
            return
        drain_s = self._stopping.drain_s
        drain_s = self._controller.config.routers.drain_s if drain_s is None else drain_s
        self._say(f"stopping; answers under way have {drain_s:g} s, unless you ask again")
        assert self._stopping.cut is not None
        cut = asyncio.create_task(self._stopping.cut.wait())
        stop = asyncio.create_task(self._controller.stop(drain_s))
        await asyncio.wait([cut, stop], return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            stop.cancel()
            await asyncio.wait([stop])
        server.should_exit = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for port in self._published:
            withdraw(port)
        if not stop.cancelled():
            stop.result()

    def _announce(self, control: str) -> None:
        """Say when everything wanted is ready, once; and tell commands on this machine where the doors are."""
        controller = self._controller
        for id in controller.routers.ids:
            self._publish(id, control)
        ready = [place.pool for place in controller.places.values() if place.phase is Phase.READY]
        is_whole = all(ready.count(pool) >= count for pool, count in controller.counts.items())
        if not self._announced and is_whole and controller.routers.ids:
            print(self._ready_line(), flush=True)
            self._announced = True

    def _publish(self, router: str, control: str) -> None:
        routers, node = self._controller.routers, self._controller.routers.node_of(router)
        ends = routers.endpoints[router]
        is_here = node is not None and node.id == self._controller.nodes.own()
        urls = tuple(map(routers.url, routers.ids))
        admin = f"http://127.0.0.1:{ends.admin_port}" if is_here else ""
        door = replace(self._door, url=admin, control=control, routers=urls)
        if self._published.get(ends.http_port) != door:  # a router that was started again has another admin port
            publish(ends.http_port, door)
            self._published[ends.http_port] = door

    def _ready_line(self) -> str:
        routers = self._controller.routers
        first = routers.ids[0]
        counts = ", ".join(f"{count} {pool}" for pool, count in self._controller.counts.items() if pool != ROUTER_POOL)
        grpc = routers.address(first, routers.endpoints[first].grpc_port)
        return (
            f"Baton is ready: {routers.url(first)} (HTTP), {grpc} (gRPC);"
            f" model {self._controller.config.served_name}, workers: {counts}"
        )


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((CONTROL_HOST, port))
    except OSError as error:
        sock.close()
        raise Unavailable(f"control_port: cannot listen on {CONTROL_HOST}:{port}: {error.strerror}") from error
    return sock
