"""The thread that owns the feed's sockets. The engine thread hands it what changed and never waits for it."""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from engine.core.errors import Unavailable
from engine.core.messages import KVEvent, PagesCleared
from engine.core.types import WorkerInfo
from engine.server.kv_events.config import FeedConfig
from engine.server.kv_events.log import EventLog
from engine.server.kv_events.readers import Readers
from engine.wire.kv_curve import protect_server
from engine.wire.kv_events import (
    END_OF_REPLAY,
    SNAPSHOT_ASKED,
    SNAPSHOT_WITH_TOKENS_ASKED,
    STATE_ASKED,
    State,
    encode_batch,
    encode_state,
    first_sequence,
    sequence_from_bytes,
    sequence_to_bytes,
    topic_of,
)

logger = logging.getLogger(__name__)

EVENTS_PER_PART = 512
"""Of a snapshot."""
SNAPSHOTS = (SNAPSHOT_ASKED, SNAPSHOT_WITH_TOKENS_ASKED)


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How much is kept for whom."""

    max_batches: int = 10_000
    """For replay."""
    subscriber_batches: int = 10_000
    """That wait for one slow subscriber; what comes beyond is not sent to it, and it sees a gap."""


@dataclass(frozen=True, slots=True)
class _Batch:
    events: Sequence[KVEvent]
    view_digest: int
    num_pages: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    events: Sequence[KVEvent]
    with_tokens: bool


class EventPublisher:
    """Publishes one worker's prefix events until closed."""

    def __init__(
        self,
        config: FeedConfig,
        info: WorkerInfo,
        cluster_key: bytes,
        ask_snapshot: Callable[[bool], None],
        limits: FeedLimits | None = None,
    ) -> None:
        """`ask_snapshot` asks the engine thread to call `snapshot`, with token ids or without.

        Raises Unavailable when the ports cannot be listened on.
        """
        limits = limits or FeedLimits()
        self._info = info
        self._ask_snapshot = ask_snapshot
        self._topic = topic_of(info.id, info.model)
        self._log = EventLog(first_sequence(time.time()), limits.max_batches)
        self._queue: queue.SimpleQueue[_Batch | _Snapshot | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._waiting: dict[bool, list[bytes]] = {False: [], True: []}
        """Who asked for a snapshot without and with token ids."""
        self._readers = Readers()
        self._context = zmq.Context()
        self._pub, self._replay = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        self._pub.sndhwm = limits.subscriber_batches
        self._replay.sndhwm = limits.max_batches + 1000
        try:
            self.ports = tuple(
                self._bind(each, config, port, cluster_key)
                for each, port in ((self._pub, config.port), (self._replay, config.replay_port))
            )
        except Unavailable:
            self._release()
            raise
        self._publish(_Batch((PagesCleared(),), 0, 0))
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ from the engine thread

    def publish(self, events: Sequence[KVEvent], view_digest: int, num_pages: int) -> None:
        """What changed, and what the cache holds after it. Never waits."""
        self._post(_Batch(events, view_digest, num_pages))

    def snapshot(self, events: Sequence[KVEvent], with_tokens: bool) -> None:
        """All that the cache holds, as of the last `publish`. Never waits."""
        self._post(_Snapshot(events, with_tokens))

    def close(self) -> None:
        """End the thread and the sockets. From any thread; idempotent."""
        if self._thread.is_alive():
            self._post(None)
            self._thread.join()

    def _post(self, word: _Batch | _Snapshot | None) -> None:
        self._queue.put(word)
        try:
            self._wake_write.send(b"\0")
        except OSError:
            pass  # full: it wakes up anyway; closed: nobody is to be woken

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        poller.register(self._pub, zmq.POLLIN)
        poller.register(self._replay, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._wake_read.fileno() in ready and not self._drain():
                    return
                if self._pub in ready:
                    for client, asked in self._readers.heard(self._pub.recv()):
                        self._want_snapshot(client, asked)
                if self._replay in ready:
                    self._answer(self._replay.recv_multipart())
        finally:
            self._release()

    def _drain(self) -> bool:
        """Publish what waits. False: it is time to end."""
        self._wake_read.recv(4096)
        while True:
            try:
                word = self._queue.get_nowait()
            except queue.Empty:
                return True
            match word:
                case None:
                    return False
                case _Batch():
                    self._publish(word)
                case _Snapshot():
                    self._send_snapshot(word)

    def _publish(self, batch: _Batch) -> None:
        payload = encode_batch(time.time(), batch.events, self._info.layout.page_size)
        number = self._log.add(payload, batch.view_digest, batch.num_pages)
        self._pub.send_multipart((self._topic, sequence_to_bytes(number), payload))

    def _answer(self, message: list[bytes]) -> None:
        match message:
            case [client, b"", asked] if asked == STATE_ASKED:
                self._replay.send_multipart((client, b"", STATE_ASKED, encode_state(self._state())))
            case [client, b"", asked] if asked in SNAPSHOTS:
                self._want_snapshot(client, asked)
            case [client, b"", asked, reader] if asked in SNAPSHOTS:
                if self._readers.may_have(reader, client, asked):
                    self._want_snapshot(client, asked)
            case [client, b"", number] if len(number) == len(END_OF_REPLAY):
                for at, payload in self._log.since(sequence_from_bytes(number)):
                    self._replay.send_multipart((client, b"", sequence_to_bytes(at), payload))
                self._replay.send_multipart((client, b"", END_OF_REPLAY, b""))
            case _:
                logger.warning("a request to the replay socket of kv events was not understood: ignored")

    def _want_snapshot(self, client: bytes, asked: bytes) -> None:
        with_tokens = asked == SNAPSHOT_WITH_TOKENS_ASKED
        waiting = self._waiting[with_tokens]
        if client not in waiting:
            waiting.append(client)
        if len(waiting) == 1:
            self._ask_snapshot(with_tokens)  # one walk through the cache for all who ask meanwhile

    def _send_snapshot(self, snapshot: _Snapshot) -> None:
        clients, self._waiting[snapshot.with_tokens] = self._waiting[snapshot.with_tokens], []
        state, now, size = encode_state(self._state()), time.time(), self._info.layout.page_size
        events: list[KVEvent] = [PagesCleared(), *snapshot.events]
        for start in range(0, len(events), EVENTS_PER_PART):
            payload = encode_batch(now, events[start : start + EVENTS_PER_PART], size)
            last = b"1" if start + EVENTS_PER_PART >= len(events) else b"0"
            for client in clients:
                self._replay.send_multipart((client, b"", SNAPSHOT_ASKED, state, last, payload))

    def _state(self) -> State:
        info, log = self._info, self._log
        return State(
            info.id, info.incarnation, log.first, log.last, log.view_digest, log.num_pages, info.layout.page_size
        )

    # ------------------------------------------------------------ both

    def _bind(self, sock: "zmq.Socket[bytes]", config: FeedConfig, port: int, cluster_key: bytes) -> int:
        sock.linger = 0
        if ":" in config.host:
            sock.ipv6 = True
        if config.encrypted:
            protect_server(sock, cluster_key)
        host = f"[{config.host}]" if ":" in config.host else config.host
        try:
            sock.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise Unavailable(f"cannot publish kv events on {config.host}:{port}: {error}") from error
        endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes), "the option is text"
        return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def _release(self) -> None:
        self._context.destroy(linger=0)
        self._wake_read.close()
        self._wake_write.close()
