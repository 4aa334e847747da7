"""The asyncio shell of the router core: workers' sessions, clients' streams, and the clock."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace

from engine.core.errors import Cancelled, Incompatible, NotFound, Unavailable
from engine.core.messages import Drain
from engine.core.types import WorkerInfo
from kv_transfer.transports.base import peer_key
from router.api import Delta, GenerateCall, PrefixReport, PrefixTree, ServiceStatus
from router.core import RouterCore
from router.events import (
    AskFeed,
    CallArrived,
    CallCancelled,
    Emit,
    Event,
    Fail,
    LeaveFeed,
    ModelsAllowed,
    Send,
    Tick,
    WorkerDraining,
    WorkerGone,
    WorkerJoined,
)
from router.feeds import Follow, PublicFeeds
from router.link import LinkEvent, WorkerConnection, WorkerLink
from router.metrics import Observer
from router.status import prefix_report, prefix_tree, service_status
from router.stream import CallStream

logger = logging.getLogger(__name__)

TICK_S = 0.05
DRAIN_POLL_S = 0.05


class RouterService:
    """Implements router.api.Generator and StatusSource. Everything happens in the asyncio loop that `start` ran in.

    service = RouterService(core, connect)
    await service.start()
    service.add_worker("10.0.0.1:5001")
    async for delta in service.generate(call): ...
    await service.stop()
    """

    def __init__(
        self,
        core: RouterCore,
        connect: Callable[[str], WorkerConnection],
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        follow: Follow | None = None,
    ) -> None:
        """`connect` makes the connection to one address; `clock` is what deadlines are measured on; `follow` reads the
        public feeds that the core may want to read.
        """
        self._core = core
        self._observer = observer
        self._connect = connect
        self._clock = clock
        self._keys = itertools.count(1)
        self._streams: dict[int, CallStream] = {}
        self._links: dict[str, WorkerLink] = {}
        """By address."""
        self._joined: dict[str, WorkerLink] = {}
        """By incarnation."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """Of the links, by address, and the clock's."""
        self._draining = False
        self._feeds = PublicFeeds(follow, self._start) if follow is not None else None
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Begin to keep time."""
        self._run("clock", self._tick())

    async def broken(self) -> None:
        """Waits for ever, unless a task of the service ends by a fault of the code: then raises that."""
        await asyncio.shield(self._broken)

    async def drain(self, limit_s: float) -> None:
        """No new calls from now on; returns when none is left, or after `limit_s`."""
        self._draining = True
        until_s = self._clock() + limit_s
        while self._streams and self._clock() < until_s:
            await asyncio.sleep(DRAIN_POLL_S)

    async def stop(self) -> None:
        """End every call with Cancelled and close every session. Idempotent."""
        for key, stream in list(self._streams.items()):
            self._handle(CallCancelled(key))
            stream.fail(Cancelled("the router is stopping"))
        self._streams.clear()
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        if self._feeds is not None:
            await self._feeds.close()
        self._links.clear()

    # ------------------------------------------------------------------------------------------------- workers

    def add_worker(self, address: str) -> None:
        """Keep a session with the worker at host:port from now on. Idempotent; returns before it is connected."""
        if address in self._links:
            return
        link = self._links[address] = WorkerLink(address, self._connect, self._on_link)
        self._run(address, link.run())

    @property
    def connected(self) -> frozenset[str]:
        """Addresses that a session is open with."""
        return frozenset(address for address, link in self._links.items() if link.key is not None)

    async def remove_worker(self, address: str, drain_s: float = 0.0) -> None:
        """Forget the worker at `address`. Its calls have `drain_s` to end there; what is left goes on elsewhere.

        Raises NotFound when no such worker was added.
        """
        link = self._links.get(address)
        if link is None:
            raise NotFound(f"no worker at {address}")
        if link.key is not None:
            self._handle(WorkerDraining(link.key))
            await self._wait_for_legs(link.key, self._clock() + drain_s)
        task = self._tasks.pop(address, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del self._links[address]

    def allow_models(self, models: frozenset[str]) -> None:
        """Let workers of these models (KVLayout.model_hash) be here side by side. No answer goes on with another one
        than it began with.
        """
        self._handle(ModelsAllowed(models))

    def drain_worker(self, worker_id: str, grace_s: float) -> None:
        """Ask a worker to leave within `grace_s`: it says so to every router, each moves what it has there, it ends.

        Raises NotFound when no such worker is connected.
        """
        links = [link for link in self._joined.values() if link.info is not None and link.info.id == worker_id]
        if not links:
            raise NotFound(f"no worker {worker_id!r} is connected")
        for link in links:
            link.send(Drain(grace_s))

    def _on_link(self, link: WorkerLink, event: LinkEvent) -> None:
        """What happens at one link; which link leads to which incarnation is known before effects are performed."""
        match event:
            case WorkerJoined(info):
                self._join(link, info)
                return
            case WorkerGone(worker):
                self._joined.pop(worker, None)
                if self._feeds is not None:
                    self._feeds.leave(worker)
        self._handle(event)

    def _join(self, link: WorkerLink, info: WorkerInfo) -> None:
        key = peer_key(info.id, info.incarnation)
        other = self._joined.get(key)
        if other is not None:
            raise Incompatible(f"worker {info.id} is here already, as {other.address}")
        self._joined[key] = link
        try:
            self._handle(WorkerJoined(info))
        except Incompatible:
            del self._joined[key]
            raise
        if self._feeds is not None and self._core.view.feeds[key].is_public:
            self._feeds.open(key, info, self._handle)

    async def _wait_for_legs(self, key: str, until_s: float) -> None:
        while self._clock() < until_s:
            worker = self._core.view.workers.get(key)
            if worker is None or not worker.legs:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    # --------------------------------------------------------------------------------------------------- calls

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
        """See router.api.Generator."""
        if self._draining:
            raise Unavailable("this router is leaving; another one, or its successor, will answer", retry_after_s=1.0)
        key = next(self._keys)
        stream = self._streams[key] = CallStream(self._clock())
        try:
            self._handle(CallArrived(key, call))
            while True:
                delta = await stream.read()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._streams.pop(key, None)
            if not stream.ended:
                self._handle(CallCancelled(key))

    def status(self) -> ServiceStatus:
        """See router.api.StatusSource."""
        recent = self._observer.recent if self._observer else None
        now = service_status(self._core, list(self._links.values()), self._clock(), recent)
        return replace(now, ready=False, detail="the router is draining") if self._draining else now

    def prefixes(self, limit: int) -> PrefixReport:
        """What the router knows of the workers' prefix caches."""
        return prefix_report(self._core, limit)

    def prefix_tree(self) -> PrefixTree:
        """See router.api.StatusSource."""
        return prefix_tree(self._core)

    # ---------------------------------------------------------------------------------------------------- core

    def _handle(self, event: Event) -> None:
        """Let the core decide, and do what it says. Raises Incompatible for a worker that may not join."""
        now = self._clock()
        for effect in self._core.handle(event, now):
            match effect:
                case Emit(key, delta):
                    stream = self._streams.get(key)
                    if stream is not None:
                        if self._observer is not None:
                            self._observer.delta(stream, delta, now)
                        stream.push(delta)
                case Send(worker, command):
                    link = self._joined.get(worker)
                    if link is not None:
                        link.send(command)
                case Fail(key, error):
                    stream = self._streams.get(key)
                    if stream is not None:
                        stream.fail(error)
                case AskFeed() | LeaveFeed():
                    self._perform_on_feed(effect)

    def _perform_on_feed(self, effect: AskFeed | LeaveFeed) -> None:
        if self._feeds is None:
            return
        match effect:
            case AskFeed(worker, ask):
                self._feeds.ask(worker, ask)
            case LeaveFeed(worker):
                logger.warning("the public feed of %s cannot be followed: its session is asked instead", worker)
                self._feeds.leave(worker)

    def _run(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._tasks[name] = self._start(work)

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """These tasks end by cancellation only."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            logger.critical("task %s ended by a fault", task.get_coro(), exc_info=error)
            self._broken.set_exception(error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._handle(Tick())
