"""A worker without a model, as fast as the wire: `python -m bench.router_workers --roles prefill --id w0`.

It answers a prompt with its first token at once and with one more every `STEP_S`, all rows in one frame, and reports
the pages that a prompt fills, so a router has the work with it that a real worker gives. Nothing is computed or moved.
Prints one JSON line with its address, like a real worker.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import grpc

from engine.core.digest import page_digests, root_digest
from engine.core.messages import (
    Adopt,
    Adopted,
    Cancel,
    Command,
    DeliverTicket,
    Finished,
    Frame,
    Generate,
    PagesCleared,
    PagesStored,
    PeerJoined,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, KVLayout, Request, WorkerInfo, WorkerLoad
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_from_proto, info_to_proto
from engine.wire.frames import frame_to_proto
from engine.wire.session_key import WorkerSide
from engine.wire.worker_client import CHANNEL_OPTIONS
from engine.wire.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

KEY = "the cluster key of a benchmark"
STEP_S = 0.01
LOAD_S = 0.1
TOKEN = 100
PAGE_SIZE = 128
NUM_PAGES = 1 << 20
MAX_MODEL_LEN = 1 << 18
LAYOUT = KVLayout("bench", 32, 8, 128, PAGE_SIZE, "bfloat16")


class FastSession:
    """One router's requests. `on_command` and `step` fill frames; whoever holds it sends them."""

    def __init__(self, num_pages: int) -> None:
        self.rows: dict[int, int] = {}
        """Request -> tokens that it still gets."""
        self.news = asyncio.Event()
        """There is something to say before the next step."""
        self._num_pages = num_pages
        self._adoptions: dict[int, int] = {}
        self._held: set[bytes] = set()
        self._frame = Frame()
        self._num_events = 0
        self._num_loads = 0

    def on_command(self, command: Command) -> None:
        """Take one command."""
        match command:
            case Generate(request):
                self._compute(request, request.sampling.max_tokens)
            case Prefill(request):
                self._compute(request, 1, end=False)
                self._frame.tickets.append(TicketIssued(request.id, b"ticket", last=True))
            case Adopt(request):
                self._adoptions[request.id] = request.sampling.max_tokens - 1
            case DeliverTicket(id):
                if (left := self._adoptions.pop(id, None)) is not None:
                    self._frame.adopted.append(Adopted(id, 1 << 20, 0.001, 1, 0))
                    self.rows[id] = left
            case Cancel(id) | Release(id):
                self.rows.pop(id, None)
                self._adoptions.pop(id, None)
            case PeerJoined(info):
                self._frame.peers.append(PeerStatus(info.id, info.incarnation, True, "bench", 1e11))
            case SendPrefixes():
                self._held.clear()
                self._say_events([PagesCleared()])
            case _:
                return
        self.news.set()

    def step(self) -> None:
        """One more token for each row."""
        for id in list(self.rows):
            self._draw(id, end=True)

    def take(self, with_load: bool) -> Frame:
        """What there is to say."""
        frame, self._frame = self._frame, Frame()
        self.news.clear()
        if with_load:
            self._num_loads += 1
            frame.load = WorkerLoad(
                seq=self._num_loads,
                reported_s=time.monotonic(),
                queued_requests=0,
                queued_tokens=0,
                running_rows=len(self.rows),
                free_pages=self._num_pages,
                num_pages=self._num_pages,
                step_s=STEP_S,
                prefill_tokens_per_s=0.0,
            )
        return frame

    def _compute(self, request: Request, num_new: int, end: bool = True) -> None:
        self._frame.started.append(Started(request.id, 0, 0.0))
        self.rows[request.id] = num_new
        self._draw(request.id, end)
        digests = page_digests(root_digest(request.cache_salt, LAYOUT.model_hash), request.tokens, PAGE_SIZE)
        new = tuple(digest for digest in digests if digest not in self._held)
        if new:
            self._held.update(new)
            self._say_events([PagesStored(b"", new)])

    def _draw(self, id: int, end: bool) -> None:
        self._frame.ids.append(id)
        self._frame.tokens.append(TOKEN)
        self.rows[id] -= 1
        if not self.rows[id]:
            del self.rows[id]
            if end:
                self._frame.finished.append(Finished(id, FinishReason.LENGTH))

    def _say_events(self, events: list[PagesStored | PagesCleared]) -> None:
        if not self._frame.kv_events:
            self._num_events += 1
        self._frame.kv_events.extend(events)
        self._frame.kv_seq = self._num_events


class FastWorker(WorkerServicer):
    """The gRPC service of one such worker."""

    def __init__(self, info: WorkerInfo, token_s: float = STEP_S) -> None:
        self._info = info
        self._door = WorkerSide(KEY.encode())
        self._token_s = token_s

    async def Describe(  # noqa: N802
        self, _request: pb.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.WorkerInfo:
        """Who it is."""
        metadata = tuple(context.invocation_metadata() or ())
        if not self._door.knows(metadata):
            context.set_trailing_metadata(self._door.greeting(metadata))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this needs the cluster key")
        return info_to_proto(self._info)

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.Command], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Frame]:
        """First tokens and acknowledgements at once, other tokens by the step."""
        session = FastSession(self._info.num_pages)
        reader = asyncio.create_task(_read(requests, session))
        step_s = load_s = 0.0
        try:
            while not reader.done():
                now = time.monotonic()
                if session.rows and now >= step_s:
                    session.step()
                    step_s = now + self._token_s
                with_load = now >= load_s
                if with_load:
                    load_s = now + LOAD_S
                frame = session.take(with_load)
                if frame:
                    yield frame_to_proto(frame)
                await _news(session, (min(step_s, load_s) if session.rows else load_s) - time.monotonic())
        finally:
            reader.cancel()


async def _read(requests: AsyncIterator[pb.Command], session: FastSession) -> None:
    async for message in requests:
        command = command_from_proto(message, time.monotonic())
        if command is not None:
            session.on_command(command)


async def _news(session: FastSession, timeout_s: float) -> None:
    if timeout_s <= 0:
        return
    try:
        async with asyncio.timeout(timeout_s):
            await session.news.wait()
    except TimeoutError:
        pass


async def serve(worker_id: str, roles: tuple[str, ...], token_s: float = STEP_S) -> None:
    """Until SIGTERM."""
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    info = WorkerInfo(worker_id, os.getpid(), roles, address, "bench", LAYOUT, NUM_PAGES, MAX_MODEL_LEN)
    add_WorkerServicer_to_server(FastWorker(info, token_s), server)
    await server.start()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    print(json.dumps({"ready": True, "address": address}), flush=True)
    await asked.wait()
    await server.stop(0)


def main(argv: list[str] | None = None) -> int:
    """Returns 0."""
    flags = argparse.ArgumentParser(prog="python -m bench.router_workers", description=__doc__)
    flags.add_argument("--id", required=True)
    flags.add_argument("--roles", nargs="+", default=["prefill", "decode"])
    flags.add_argument("--step-s", type=float, default=STEP_S, help="seconds between two tokens of a row")
    flags.add_argument("--log-level", help="for whoever starts it like a real worker; it logs nothing")
    args = flags.parse_args(argv)
    asyncio.run(serve(args.id, tuple(args.roles), args.step_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
