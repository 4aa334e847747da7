"""Both ends of a public event feed over real sockets: a cache that publishes, and a reader with an index of its own."""

import asyncio
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import zmq

from engine.core.digest import page_keys
from engine.core.radix_tree import RadixTree
from engine.core.types import KVLayout, WorkerInfo
from engine.server.kv_events.config import FeedConfig
from engine.server.kv_events.publisher import EventPublisher, FeedLimits
from engine.server.worker import new_incarnation
from engine.wire.kv_events import STATE_ASKED
from router.events import FeedBatch, FeedReplayed, FeedState
from router.feeds import FeedWord
from router.kv_follower import FeedPlace, FollowerConfig, KVFollower
from router.prefix_feed import PrefixFeed
from router.prefix_index import PrefixIndex

PAGE_SIZE = 4
KEY = b"a cluster key for tests only"
TIMEOUT_S = 20.0


class Publisher:
    """A radix tree and its feed. Changes come from the test's thread, snapshots from the publisher's: one at a time."""

    def __init__(self, ports: tuple[int, int], limits: FeedLimits | None, encrypted: bool) -> None:
        self.info = WorkerInfo(
            "w0", new_incarnation(), ("decode",), "", "m", KVLayout("h", 1, 1, 8, PAGE_SIZE, "float32"), 1 << 20, 4096
        )
        self.tree = RadixTree(PAGE_SIZE, "h")
        self._num_pages = 0
        self._lock = threading.Lock()
        config = FeedConfig("127.0.0.1", *ports, encrypted)
        self.feed = EventPublisher(config, self.info, KEY, self._snapshot, limits)
        urls = [f"{config.scheme}://127.0.0.1:{port}" for port in self.feed.ports]
        self.place = FeedPlace(*urls)

    def store(self, tokens: Sequence[int], salt: bytes = b"") -> None:
        """The pages of `tokens` enter the cache, in one batch."""
        with self._lock:
            data = array("i", tokens).tobytes()
            num = len(tokens) // PAGE_SIZE
            root, _ = self.tree.match(salt, b"", 0)
            self.tree.insert(root, data, list(range(self._num_pages, self._num_pages + num)))
            self._num_pages += num
            self._publish()

    def evict(self, num_pages: int) -> None:
        """The least recently used pages leave it."""
        with self._lock:
            self.tree.evict(num_pages)
            self._publish()

    def wait(self) -> None:
        """Blocks until all that changed so far has been sent: an answer comes after what waited before the question."""
        with zmq.Context() as context, context.socket(zmq.REQ) as request:
            request.connect(self.place.replay)
            request.send(STATE_ASKED)
            request.recv_multipart()

    @property
    def keys(self) -> set[int]:
        """Pages that are in the cache."""
        with self._lock:
            return {key for event in self.tree.stored_pages() for key in page_keys(event.digests)}

    def _publish(self) -> None:
        events = self.tree.drain_events()
        if events:
            self.feed.publish(events, self.tree.view_digest, self.tree.num_pages)

    def _snapshot(self, with_tokens: bool) -> None:
        with self._lock:
            self.feed.snapshot(self.tree.stored_pages(with_tokens), with_tokens)


@contextmanager
def publishing(
    ports: tuple[int, int] = (0, 0), limits: FeedLimits | None = None, encrypted: bool = False
) -> Iterator[Publisher]:
    """A publisher while the block runs."""
    publisher = Publisher(ports, limits, encrypted)
    try:
        yield publisher
    finally:
        publisher.feed.close()


class Reader:
    """A follower, its feed machine and an index, joined as a router joins them. `drop` loses what it likes."""

    def __init__(self, place: FeedPlace, config: FollowerConfig | None = None, key: bytes = KEY) -> None:
        self.index = PrefixIndex()
        self.feed = PrefixFeed(self.index, 1 << 20, replays=True)
        self.drop: Callable[[FeedWord], bool] = lambda word: False
        self.words: list[FeedWord] = []
        self.now: float | None = None
        """What the feed takes for the time; None: the machine's clock."""
        self._follower = KVFollower("w0", place, key, self._handle, config or FollowerConfig(state_s=0.05))
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "Reader":
        self._tasks = [asyncio.create_task(self._follower.run()), asyncio.create_task(self._keep_time())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def keys(self) -> set[int]:
        """Pages that the index knows of."""
        return {key for part in self.index._parts for key in part}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Fails after TIMEOUT_S."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def follows(self, publisher: Publisher) -> None:
        """Until it knows exactly what the publisher's cache holds."""
        await self.until(lambda: self.feed.synced and self.keys == publisher.keys)

    def _handle(self, word: FeedWord) -> None:
        if self.drop(word):
            return
        self.words.append(word)
        match word:
            case FeedBatch(_, seq, events):
                self.feed.apply(seq, events)
            case FeedState(_, incarnation, seq, digest):
                self.feed.met(incarnation)
                if seq is not None:
                    self.feed.report(digest, seq, self._clock())
            case FeedReplayed():
                self.feed.replayed()
        self._ask()

    def _ask(self) -> None:
        ask = self.feed.next_ask(self._clock())
        if ask is not None:
            self._follower.ask(ask)
        self._changed.set()

    def _clock(self) -> float:
        return time.monotonic() if self.now is None else self.now

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self._ask()
