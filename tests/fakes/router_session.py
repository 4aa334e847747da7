"""A router's session with one worker, for tests: everything it hears is kept, and waited for with a time limit."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from engine.core.messages import (
    Command,
    DeliverTicket,
    Finished,
    Frame,
    HandoffFailed,
    PagesStored,
    PeerJoined,
    Release,
)
from engine.core.types import WorkerInfo
from engine.wire.worker_client import WorkerClient, WorkerLost
from tests.fakes.virtual_worker import KEY

TIMEOUT_S = 30.0


class RouterSession:
    """One session, read in the background; `until` waits for what it is about."""

    def __init__(self, address: str) -> None:
        self.client = WorkerClient(address, KEY, silence_s=TIMEOUT_S)
        self.info: WorkerInfo
        self.frames: list[Frame] = []
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.on_frame: Callable[[Frame], None] = lambda frame: None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None]

    async def open(self) -> None:
        self.info = await self.client.connect()
        self._task = asyncio.create_task(self._read())
        await self.until(lambda: bool(self.loads))

    async def close(self) -> None:
        await self.client.close()
        await asyncio.gather(self._task, return_exceptions=True)

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.client.send(command)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                assert self.client.lost is None or condition(), self.client.lost
                self._changed.clear()
                await self._changed.wait()

    async def lost(self) -> WorkerLost:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(self._task, return_exceptions=True)
        assert self.client.lost is not None
        return self.client.lost

    def all(self, field: str) -> list:
        return [item for frame in self.frames for item in getattr(frame, field)]

    def finished(self, id: int) -> list[Finished]:
        return [finished for finished in self.all("finished") if finished.id == id]

    def failed(self, id: int) -> list[HandoffFailed]:
        return [failed for failed in self.all("handoff_failed") if failed.id == id]

    @property
    def pages(self) -> set[bytes]:
        """Digests of all pages that were stored."""
        return {digest for event in self.all("kv_events") if isinstance(event, PagesStored) for digest in event.digests}

    @property
    def loads(self) -> list:
        return [frame.load for frame in self.frames if frame.load is not None]

    async def idle(self) -> None:
        """Until the worker reports that nobody holds a page."""
        seen = len(self.loads)
        await self.until(lambda: any(load.free_pages == load.num_pages for load in self.loads[seen:]))

    async def _read(self) -> None:
        try:
            async for frame in self.client.frames():
                self.frames.append(frame)
                for id, token in zip(frame.ids, frame.tokens, strict=True):
                    self.tokens[id].append(token)
                self.on_frame(frame)
                self._changed.set()
        finally:
            self._changed.set()


async def join(prefill: RouterSession, decode: RouterSession) -> None:
    """Introduce the two workers to each other and pass tickets and releases on, as a router does."""

    def pass_tickets(frame: Frame) -> None:
        decode.send(*(DeliverTicket(issued.id, issued.ticket) for issued in frame.tickets))

    def release(frame: Frame) -> None:
        prefill.send(*(Release(adopted.id) for adopted in frame.adopted))

    prefill.on_frame, decode.on_frame = pass_tickets, release
    decode.send(PeerJoined(prefill.info))
    await decode.until(lambda: any(peer.worker_id == prefill.info.id and peer.ready for peer in decode.all("peers")))
