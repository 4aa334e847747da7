"""Pages over gRPC: works between any two machines that can open a TCP connection, at a few hundred MB/s.

Each end has one thread with one asyncio loop that serves this worker's pages and reads others'. The Transport's own
methods only hand work to that thread and take completions from it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import TypeVar

import grpc
import grpc.aio

from engine.core.errors import InvalidRequest, TransferFailed
from engine.core.types import WorkerInfo
from engine.wire import kv_pb2
from engine.wire.tls import TlsFiles, channel_credentials, listen, open_channel
from kv_transfer.reslice import Cut, Part
from kv_transfer.transports.base import (
    NUM_SPARE_PAGES,
    Completion,
    OpStatus,
    PagePool,
    PageRead,
    descriptor_of,
    peer_key,
)
from kv_transfer.transports.page_stream import PageSink, page_messages
from kv_transfer.transports.signed import Judge, Signer

_SERVICE = "baton.v1.PageTransfer"
LOOP_S = 30.0
"""Far more than starting or stopping takes; a loop that is stuck for longer is a bug, and says so."""
CANCEL_S = 5.0

_WINDOWS = [("grpc.http2.lookahead_bytes", 16 << 20), ("grpc.http2.max_frame_size", 4 << 20)]
_SERVER_OPTIONS = [*_WINDOWS, ("grpc.so_reuseport", 0)]
_CLIENT_OPTIONS = [
    *_WINDOWS,
    # A peer that comes back is tried by the transfer core; gRPC's own back-off, shared by address, would hide it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

Result = TypeVar("Result")
ReadCall = Callable[["_Source"], Coroutine[None, None, Completion]]


def _cut_of(pull: kv_pb2.PullRequest) -> Cut | None:
    """The part that is asked for; where it goes is the reader's business."""
    if not pull.HasField("part"):
        return None
    part = Part(pull.part.position, pull.part.num_positions, pull.part.head, pull.part.num_heads)
    return Cut(part, part)


class PageService:
    """Serves one pool to whoever has the cluster key: baton.v1.PageTransfer, except that Pull's messages are bytes."""

    def __init__(self, pool: PagePool, name: str, key: bytes) -> None:
        """`name` is this worker's own peer_key."""
        self._pool = pool
        self._judge = Judge(name, key)

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        read = kv_pb2.SignedRequest.FromString
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Pull": grpc.unary_stream_rpc_method_handler(self.Pull, read),
                "Generations": grpc.unary_unary_rpc_method_handler(
                    self.Generations, read, kv_pb2.GenerationsReply.SerializeToString
                ),
            },
        )

    async def Pull(  # noqa: N802 - gRPC's name
        self, request: kv_pb2.SignedRequest, context: "grpc.aio.ServicerContext"
    ) -> AsyncIterator[bytes]:
        """Stream pages, as encoded PageChunks; gRPC's flow control holds the stream back when the reader is slow."""
        await self._authenticate("Pull", request, context)
        pull = kv_pb2.PullRequest.FromString(request.body)
        await self._check_pages(pull.pages, context)
        if not 0 <= pull.layer_begin < pull.layer_end <= self._pool.layout.num_layers:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "layers out of range")
        if pull.rank >= self._pool.layout.tp_size:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such rank")
        cut = _cut_of(pull)
        if cut is not None and not cut.src.fits(self._pool.layout):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such part of a page")
        read = PageRead(0, "", pull.pages, (), pull.layer_begin, pull.layer_end, cut, src_rank=pull.rank)
        for message in page_messages(self._pool, read):
            yield message

    async def Generations(  # noqa: N802 - gRPC's name
        self, request: kv_pb2.SignedRequest, context: "grpc.aio.ServicerContext"
    ) -> kv_pb2.GenerationsReply:
        """Generations as they are now."""
        await self._authenticate("Generations", request, context)
        pages = kv_pb2.GenerationsRequest.FromString(request.body).pages
        await self._check_pages(pages, context)
        generations = self._pool.generations
        return kv_pb2.GenerationsReply(generations=[generations[page] for page in pages])

    async def _authenticate(
        self, method: str, request: kv_pb2.SignedRequest, context: "grpc.aio.ServicerContext"
    ) -> None:
        refusal = self._judge.refusal(method, request)
        if refusal is not None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal)

    async def _check_pages(self, pages: Sequence[int], context: "grpc.aio.ServicerContext") -> None:
        if not pages or max(pages) >= self._pool.num_pages + NUM_SPARE_PAGES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such page")


class _Source:
    """One peer that pages are read from: its channel and what is in flight on it."""

    def __init__(self, channel: "grpc.aio.Channel") -> None:
        self.channel = channel
        write = kv_pb2.SignedRequest.SerializeToString
        self.pull = channel.unary_stream(f"/{_SERVICE}/Pull", write)
        self.generations = channel.unary_unary(f"/{_SERVICE}/Generations", write, kv_pb2.GenerationsReply.FromString)
        self.tasks: set[asyncio.Task[Completion]] = set()


class GrpcTransport:
    """A Transport that also serves its own pool, on a port of its own."""

    name = "grpc"

    def __init__(
        self,
        pool: PagePool,
        name: str,
        key: bytes,
        bind: str = "127.0.0.1:0",
        advertise_host: str | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        """Start serving.

        Args:
            name: this worker's own peer_key.
            key: the cluster key.
            bind: host:port to listen on; port 0 takes a free one.
            advertise_host: where peers reach `bind`, when that is not its own host.
            tls: mutual, with every peer.

        Raises:
            TransferFailed: the address cannot be listened on, or the TLS files cannot be used.
        """
        self._tls = tls
        self._pool = pool
        self._signer = Signer(key)
        self._service = PageService(pool, name, key)
        self._completions: SimpleQueue[Completion] = SimpleQueue()
        self._sources: dict[str, _Source] = {}
        """Touched by the loop's thread only."""
        self._loop = asyncio.new_event_loop()
        self._server: grpc.aio.Server | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="transfer-grpc", daemon=True)
        self._thread.start()
        host = advertise_host or bind.rpartition(":")[0]
        try:
            self._address = f"{host}:{self._run(self._serve(bind))}"
        except RuntimeError as error:
            self.close()
            raise TransferFailed(f"cannot listen on {bind}: {error}") from error
        except InvalidRequest as error:
            self.close()
            raise TransferFailed(error.message) from error

    def descriptor(self) -> bytes:
        """host:port of the page service."""
        return self._address.encode()

    def connect(self, info: WorkerInfo) -> None:
        """Make a channel. Whether anybody answers is seen by the first read. Raises TransferFailed for TLS files."""
        address = descriptor_of(info, self.name).decode()
        try:
            credentials = channel_credentials(self._tls)
        except InvalidRequest as error:
            raise TransferFailed(error.message) from error
        self._loop.call_soon_threadsafe(self._connect, peer_key(info.id, info.incarnation), address, credentials)

    def disconnect(self, peer: str) -> None:
        """Cancel what is in flight: it ends at once, and its bytes land nowhere."""
        self._loop.call_soon_threadsafe(self._disconnect, peer)

    def read_pages(self, read: PageRead) -> None:
        """Post one read."""
        self._post(read.op, read.peer, lambda source: self._pull(source, read))

    def read_generations(self, op: int, peer: str, pages: Sequence[int]) -> None:
        """Post a read of generations."""
        self._post(op, peer, lambda source: self._generations(source, op, peer, pages))

    def poll(self) -> list[Completion]:
        """What ended since the last call."""
        ended = []
        while True:
            try:
                ended.append(self._completions.get_nowait())
            except Empty:
                return ended

    def close(self) -> None:
        """Stop serving and reading, and end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ------------------------------------------------------------ between the threads

    def _run(self, coroutine: Coroutine[None, None, Result]) -> Result:
        """Let the loop's thread run something short, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LOOP_S)

    def _post(self, op: int, peer: str, read: ReadCall) -> None:
        self._loop.call_soon_threadsafe(self._start, op, peer, read)

    # ------------------------------------------------------------ on the loop's thread

    async def _serve(self, bind: str) -> int:
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self._service.handler,))
        port = listen(self._server, bind, self._tls)
        await self._server.start()
        return port

    def _connect(self, peer: str, address: str, credentials: "grpc.ChannelCredentials | None") -> None:
        self._disconnect(peer)
        self._sources[peer] = _Source(open_channel(address, credentials, _CLIENT_OPTIONS))

    def _disconnect(self, peer: str) -> None:
        source = self._sources.pop(peer, None)
        if source is not None:
            for task in source.tasks:
                task.cancel()
            self._loop.create_task(source.channel.close())

    def _start(self, op: int, peer: str, read: ReadCall) -> None:
        source = self._sources.get(peer)
        if source is None:
            self._completions.put(Completion(op, OpStatus.FAILED, peer_lost=True, message="not connected"))
            return
        task = self._loop.create_task(read(source))
        source.tasks.add(task)
        task.add_done_callback(lambda task: self._end(op, source, task))

    def _end(self, op: int, source: _Source, task: "asyncio.Task[Completion]") -> None:
        """Every read ends with one completion, whatever became of it."""
        source.tasks.discard(task)
        if task.cancelled():
            self._completions.put(Completion(op, OpStatus.FAILED, peer_lost=True, message="disconnected"))
            return
        error = task.exception()
        if error is None:
            self._completions.put(task.result())
        elif isinstance(error, grpc.aio.AioRpcError):
            lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
            message = f"{error.code().name}: {error.details()}"
            self._completions.put(Completion(op, OpStatus.FAILED, peer_lost=lost, message=message))
        else:
            self._completions.put(Completion(op, OpStatus.FAILED, message=repr(error)))

    async def _pull(self, source: _Source, read: PageRead) -> Completion:
        pull = kv_pb2.PullRequest(
            pages=read.src, layer_begin=read.layer_begin, layer_end=read.layer_end, rank=read.src_rank
        )
        if read.cut is not None:
            pull.part.CopyFrom(kv_pb2.PagePart(**asdict(read.cut.src)))
        sink = PageSink(self._pool, read)
        async for message in source.pull(self._signer.sign("Pull", read.peer, pull)):
            sink.take(message)
        if sink.num_pages < len(read.dst):
            message = f"the stream ended after {sink.num_pages} of {len(read.dst)} pages"
            return Completion(read.op, OpStatus.FAILED, message=message)
        return Completion(read.op, OpStatus.DONE, read.num_bytes(self._pool.layout))

    async def _generations(self, source: _Source, op: int, peer: str, pages: Sequence[int]) -> Completion:
        request = self._signer.sign("Generations", peer, kv_pb2.GenerationsRequest(pages=pages))
        reply = await source.generations(request)
        return Completion(op, OpStatus.DONE, 8 * len(pages), tuple(reply.generations))

    async def _shut_down(self) -> None:
        tasks = [task for source in self._sources.values() for task in source.tasks]
        for peer in list(self._sources):
            self._disconnect(peer)
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_S)
        if self._server is not None:
            await self._server.stop(None)
