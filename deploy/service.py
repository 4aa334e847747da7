"""A whole service: Ray underneath, workers and a router in processes of their own, kept alive until told to stop."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from deploy.actors import DecodeWorker, Endpoints, Place, PrefillWorker, Router
from deploy.checks import check_model, check_ports, check_secrets
from deploy.cluster import EMBEDDED, Cluster
from deploy.config import ServiceConfig, service_config
from deploy.door import AdminDoor, publish, withdraw
from deploy.fleet.placing import Node
from deploy.fleet.recipes import port_at
from deploy.fleet.routers import Routers
from deploy.launcher import RayProcess
from deploy.supervisor import Member, Supervisor
from engine.core.errors import BatonError, InvalidRequest
from engine.core.types import WorkerInfo
from engine.server.config import WorkerConfig
from router.api import ServiceStatus
from router.config import RouterConfig
from router.server_config import RouterServerConfig

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
READY_POLL_S = 0.05
HERE = Node("", {}, {}, {}, "127.0.0.1")
"""Routers of one host are reached on it."""
PATIENCE_S = 10.0
"""How often a long start says what it still waits for."""


class Progress:
    """Lines on standard error that say what happens and how long it has taken."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print one."""
        print(f"[{time.monotonic() - self._start_s:5.1f} s] {line}", file=sys.stderr, flush=True)


def run(values: dict[str, Any], *, ray_address: str) -> int:
    """Serve until SIGINT or SIGTERM, then end every process.

    Args:
        values: by the names of deploy.config.FLAGS.
        ray_address: as for Cluster.

    Returns:
        The exit status: 0 stopped, 2 could not start (one line on standard error says why).
    """
    say = Progress()
    # SIGINT, too: a shell starts background jobs with it ignored.
    _handle_signals(_interrupt)
    try:
        config = service_config(values, ray_address=ray_address)
        check_ports(config)
        check_secrets(config.gateway, ray_address=ray_address)
        say(f"looking at model {config.engine.model}")
        check_model(config)
        say("starting Ray" if ray_address == EMBEDDED else f"connecting to Ray at {ray_address}")
        with Cluster(ray_address) as cluster:
            try:
                asyncio.run(Service(config, cluster, say).serve())
            finally:
                _handle_signals(signal.SIG_IGN)  # a second Ctrl-C must not leave half of the processes behind
                say("stopping")
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped")
        return 0
    except BatonError as error:
        flag = f"--{error.param.replace('_', '-')}: " if error.param else ""
        print(f"baton: {flag}{error.message}", file=sys.stderr, flush=True)
        return 2
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _handle_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


class Service:
    """The members of one service on one cluster."""

    def __init__(self, config: ServiceConfig, cluster: Cluster, say: Callable[[str], None]) -> None:
        """Raises InvalidRequest when the cluster has too few GPUs."""
        self._say = say
        self._device = place(config, cluster.num_gpus())
        self._config = config
        self._place = Place(max(1, cluster.num_cpus() // config.num_workers), is_only_node=cluster.embedded)
        self._cluster_key = cluster.key()
        self._supervisor = Supervisor(say)
        self._workers_up: dict[str, WorkerInfo] = {}
        """By address."""
        self._ports: dict[str, int] = {}
        """Where each worker listened last, for the next start."""
        self._routers = Routers(say, config.gateway.tls.scheme)
        self._max_model_len: int | None = config.engine.max_model_len
        """From when the workers are up: what all of them can hold."""
        self._router_resources = cluster.router_resources()
        self._router_names = tuple(f"router-{i}" for i in range(config.routing.num_routers))
        self._next_routers = {name: self._new_router(name) for name in self._router_names}

    async def serve(self) -> None:
        """Start, print the ready line, keep everything alive. Returns only by cancellation or an error."""
        self._end_with(asyncio.current_task())
        try:
            for router in self._next_routers.values():
                router.prepare()  # its imports take as long as a worker's model
            await self._patiently(self._supervisor.start(self._workers()), "loading the model")
            self._max_model_len = min(info.max_model_len for info in self._workers_up.values())
            await self._patiently(self._supervisor.start(self._router_members()), "starting the router")
            await self._patiently(self._until_ready(), "waiting until the workers can hand over")
            print(self._ready_line(), flush=True)
            await self._supervisor.watch()
        finally:
            for endpoints in self._routers.endpoints.values():
                withdraw(endpoints.http_port)
            await asyncio.gather(self._supervisor.stop(), *(router.stop() for router in self._next_routers.values()))

    def _end_with(self, task: "asyncio.Task[Any] | None") -> None:
        """The first signal cancels `task`; later ones must not cancel the clean-up."""
        assert task is not None
        loop = asyncio.get_running_loop()

        def end() -> None:
            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, lambda: None)
            task.cancel()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, end)

    async def _patiently(self, work: Coroutine[None, None, None], what: str) -> None:
        """Await `work` and say every now and then that it is still going on."""
        self._say(what)
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=PATIENCE_S))[0]:
                self._say(f"still {what}")
        finally:
            task.cancel()
            await asyncio.wait([task])
        task.result()

    # ------------------------------------------------------------ workers

    def _workers(self) -> list[Member[WorkerInfo]]:
        config = self._config
        prefill = [] if config.colocated else [f"prefill-{i}" for i in range(config.num_prefill)]
        decode = [f"decode-{i}" for i in range(config.num_decode)]
        kinds = [(name, PrefillWorker) for name in prefill] + [(name, DecodeWorker) for name in decode]
        return [self._worker(name, actor, number) for number, (name, actor) in enumerate(kinds)]

    def _worker(self, worker_id: str, actor: type[PrefillWorker | DecodeWorker], number: int) -> Member[WorkerInfo]:
        num_ranks = self._config.prefill_ranks if actor is PrefillWorker else self._config.decode_ranks
        num_gpus = 0 if self._device == "cpu" else num_ranks
        parallel = replace(self._config.engine.parallel, tp_size=num_ranks)
        config = WorkerConfig(
            engine=replace(self._config.engine, device=self._device, parallel=parallel),
            worker_id=worker_id,
            cluster_key=self._cluster_key.encode(),
            model_name=self._config.model_name,
            transport=self._config.links.transport,
            kv_events=self._config.links.feed_of(number),
            tls=self._config.gateway.tls.cluster,
        )

        def launch() -> RayProcess:
            # Once more where its predecessor listened, so that an address stays one worker's; if that fails, anywhere.
            again = replace(config, port=self._ports.pop(worker_id, 0))
            return RayProcess(actor, lambda: (again, self._place), num_gpus=num_gpus)

        return Member(worker_id, launch, self._worker_up, self._worker_down)

    async def _worker_up(self, info: WorkerInfo) -> None:
        self._say(f"{info.id} is up at {info.address} with {info.num_pages} pages of {info.layout.page_size} tokens")
        self._workers_up[info.address] = info
        self._ports[info.id] = int(info.address.rpartition(":")[2])
        await self._routers.learn(list(self._workers_up.values()))

    async def _worker_down(self, info: WorkerInfo) -> None:
        del self._workers_up[info.address]
        await self._routers.forget(info)

    # ------------------------------------------------------------ routers

    def _router_members(self) -> list[Member[Endpoints]]:
        return [self._router_member(name) for name in self._router_names]

    def _router_member(self, name: str) -> Member[Endpoints]:
        launched: list[RayProcess] = []

        def launch() -> RayProcess:
            launched[:] = [self._next_routers[name]]
            self._next_routers[name] = self._new_router(name)
            return launched[0]

        async def up(endpoints: Endpoints) -> None:
            """From the second start on it has the ports that the first one found."""
            await self._routers.joined(name, launched[0], endpoints, HERE)
            self._publish()
            await self._routers.learn(list(self._workers_up.values()))

        async def down(_endpoints: Endpoints) -> None:
            self._routers.left(name)

        return Member(name, launch, up, down)

    def _new_router(self, name: str) -> RayProcess:
        return RayProcess(Router, lambda: self._router_args(name), resources=self._router_resources)

    def _router_args(self, name: str) -> tuple[str, RouterServerConfig]:
        config, index, known = self._config, self._router_names.index(name), self._routers.endpoints.get(name)
        router_config = RouterServerConfig(
            model=Path(),
            model_name=config.model_name,
            cluster_key=self._cluster_key.encode(),
            max_model_len=self._max_model_len,
            host=config.host,
            port=known.http_port if known else port_at(config.port, index),
            grpc_port=known.grpc_port if known else port_at(config.grpc_port, index),
            admin_port=known.admin_port if known else port_at(config.admin_port, index),
            policy=config.routing.policy,
            gateway=config.gateway,
            doors=config.doors,
            limits=RouterConfig(salt_key=self._cluster_key.encode()),
        )
        return config.engine.model, router_config

    def _publish(self) -> None:
        """Let commands on this machine find each router's admin door, and all routers from any of them."""
        if not self._place.is_only_node:
            return
        known = self._routers.endpoints
        urls = tuple(self._routers.url(name) for name in self._router_names if name in known)
        for endpoints in known.values():
            admin = f"http://127.0.0.1:{endpoints.admin_port}"
            publish(endpoints.http_port, AdminDoor(admin, self._cluster_key, routers=urls))

    # ------------------------------------------------------------ readiness

    async def _until_ready(self) -> None:
        """Until each router reaches every worker and every pair has proven itself or said why it cannot."""
        while True:
            statuses = await self._routers.statuses()
            if len(statuses) == len(self._router_names) and all(map(self._is_ready, statuses)):
                break
            await asyncio.sleep(READY_POLL_S)
        for worker in statuses[0].workers:
            for peer in worker.peers:
                if not peer.ready:
                    self._say(f"{worker.info.id} cannot take pages from {peer.worker_id}: {peer.message}")

    def _is_ready(self, status: ServiceStatus) -> bool:
        return status.ready and all_joined(status, self._workers_up.values())

    def _ready_line(self) -> str:
        config = self._config
        if config.colocated:
            workers = f"{config.num_decode} colocated"
        else:
            workers = f"{config.num_prefill} prefill, {config.num_decode} decode"
        first, *further = map(self._doors_of, self._router_names)
        more = f", routers also at {' and '.join(further)}" if further else ""
        return f"Baton is ready: {first}; model {config.model_name}, workers: {workers}{more}"

    def _doors_of(self, name: str) -> str:
        ends = self._routers.endpoints[name]
        host = f"[{ends.host}]" if ":" in ends.host else ends.host
        return f"{self._config.gateway.tls.scheme}://{host}:{ends.http_port} (HTTP), {host}:{ends.grpc_port} (gRPC)"


def all_joined(status: ServiceStatus, workers: Iterable[WorkerInfo]) -> bool:
    """Whether every worker is ready, and every decode worker has said of every other worker whether it can pull."""
    expected = {(info.id, info.incarnation) for info in workers}
    joined = {(worker.info.id, worker.info.incarnation) for worker in status.workers if worker.state == "ready"}
    answered = [
        {(worker.info.id, worker.info.incarnation), *((peer.worker_id, peer.incarnation) for peer in worker.peers)}
        for worker in status.workers
        if "decode" in worker.info.roles
    ]
    return expected <= joined and all(expected <= peers for peers in answered)


def place(config: ServiceConfig, num_gpus: int) -> str:
    """The device of each rank. Raises InvalidRequest when there are too few GPUs."""
    device = config.engine.device
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return "cpu"
    if num_gpus < config.num_ranks:
        raise InvalidRequest(
            f"{config.num_workers} workers need {config.num_ranks} GPUs, Ray has {num_gpus}; "
            "ask for fewer workers or ranks, --colocated, or --device cpu"
        )
    return "cuda"
