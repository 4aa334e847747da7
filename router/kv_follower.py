"""Reads one worker's public feed of prefix events over ZMQ, for the feed machine of that worker."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import zmq
import zmq.asyncio

from engine.core.errors import InvalidRequest
from engine.core.messages import KVEvent
from engine.wire.kv_curve import protect_client
from engine.wire.kv_events import (
    END_OF_REPLAY,
    READER,
    SNAPSHOT_ASKED,
    STATE_ASKED,
    State,
    decode_batch,
    decode_state,
    sequence_from_bytes,
    sequence_to_bytes,
)
from router.events import FeedBatch, FeedReplayed, FeedState
from router.feeds import FeedWord
from router.prefix_feed import Ask, AskReplay

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FollowerConfig:
    """How one feed is read."""

    state_s: float = 1.0
    """How often the publisher is asked for its own word."""
    max_unread: int = 10_000
    """Messages that wait to be read; a publisher that has more for this reader lets them go."""


@dataclass(frozen=True, slots=True)
class FeedPlace:
    """Where a worker publishes, as its topology says."""

    events: str
    """tcp://host:port or curve://host:port."""
    replay: str

    @classmethod
    def of(cls, topology: tuple[tuple[str, str], ...]) -> "FeedPlace":
        """What is missing there can be connected to by nobody."""
        labels = dict(topology)
        return cls(labels.get("kv_events", ""), labels.get("kv_replay", ""))


class KVFollower:
    """A SUB and a DEALER socket in one asyncio loop. Says what came; what to ask for is somebody else's decision."""

    def __init__(
        self,
        worker: str,
        place: FeedPlace,
        cluster_key: bytes,
        handle: Callable[[FeedWord], None],
        config: FollowerConfig | None = None,
    ) -> None:
        """`worker` is what the words call it. `handle` gets them in the order of arrival."""
        self._worker = worker
        self._place = place
        self._cluster_key = cluster_key
        self._handle = handle
        self._config = config or FollowerConfig()
        self._context = zmq.asyncio.Context()
        self._sub, self._dealer = self._context.socket(zmq.SUB), self._context.socket(zmq.DEALER)
        self._sub.rcvhwm = self._config.max_unread
        self._topic = READER + uuid4().hex.encode()
        for topic in (b"", self._topic):  # in this order: who has the second has the first
            self._sub.subscribe(topic)
        self._snapshot: tuple[State, list[KVEvent]] | None = None
        """Parts of the snapshot under way."""

    async def run(self) -> None:
        """Until cancelled. A publisher that is not there (yet, or again) is waited for."""
        try:
            if not self._connect():
                await asyncio.Event().wait()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(self._sub, self._on_batch))
                tasks.create_task(self._read(self._dealer, self._on_answer))
                tasks.create_task(self._ask_for_state())
        finally:
            self._context.destroy(linger=0)

    def ask(self, ask: Ask) -> None:
        """Send one request; never waits. One that gets lost is asked again by who keeps the time."""
        if isinstance(ask, AskReplay):
            self._send(sequence_to_bytes(ask.first))
        else:
            self._snapshot = None
            self._send(SNAPSHOT_ASKED, self._topic)

    # ------------------------------------------------------------ private

    def _connect(self) -> bool:
        """False for places that cannot be: what a worker says must not end the router."""
        try:
            for sock, url in ((self._sub, self._place.events), (self._dealer, self._place.replay)):
                scheme, _, place = url.partition("://")
                if scheme == "curve":
                    protect_client(sock, self._cluster_key)
                sock.connect(f"tcp://{place}")
        except zmq.ZMQError as error:
            logger.warning("kv events of worker=%s at %s: %s", self._worker, self._place, error)
            return False
        return True

    def _send(self, *request: bytes) -> Awaitable[object]:
        sent: Awaitable[object] = self._dealer.send_multipart((b"", *request))
        return sent

    async def _ask_for_state(self) -> None:
        while True:
            await self._send(STATE_ASKED)
            await asyncio.sleep(self._config.state_s)

    async def _read(self, sock: "zmq.asyncio.Socket", take: Callable[[list[bytes]], None]) -> None:
        while True:
            receiving: Awaitable[list[bytes]] = sock.recv_multipart()
            try:
                take(await receiving)
            except InvalidRequest as error:
                logger.warning("kv events of worker=%s: %s", self._worker, error.message)

    def _on_batch(self, message: list[bytes]) -> None:
        if len(message) != 3:
            raise InvalidRequest(f"a message of {len(message)} parts")
        _, number, payload = message
        self._handle(FeedBatch(self._worker, sequence_from_bytes(number), decode_batch(payload)))

    def _on_answer(self, message: list[bytes]) -> None:
        match message:
            case [b"", kind, state] if kind == STATE_ASKED:
                said = decode_state(state)
                self._handle(FeedState(self._worker, said.incarnation, said.last, said.view_digest))
            case [b"", kind, state, last, payload] if kind == SNAPSHOT_ASKED:
                self._on_snapshot_part(decode_state(state), last == b"1", decode_batch(payload))
            case [b"", number, _] if number == END_OF_REPLAY:
                self._handle(FeedReplayed(self._worker))
            case [b"", number, payload]:
                self._handle(FeedBatch(self._worker, sequence_from_bytes(number), decode_batch(payload)))
            case _:
                raise InvalidRequest("an answer that is not understood")

    def _on_snapshot_part(self, state: State, last: bool, events: list[KVEvent]) -> None:
        if self._snapshot is None or self._snapshot[0] != state:
            self._snapshot = (state, [])
        self._snapshot[1].extend(events)
        if last:
            _, whole = self._snapshot
            self._snapshot = None
            self._handle(FeedState(self._worker, state.incarnation, None, 0))
            self._handle(FeedBatch(self._worker, state.last, whole))
