"""The public feeds that a router reads: one task for each worker that has one, while it is there."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol

from engine.core.types import WorkerInfo
from router.events import FeedBatch, FeedReplayed, FeedState
from router.prefix_feed import Ask

FeedWord = FeedBatch | FeedState | FeedReplayed


class Follower(Protocol):
    """Reads one feed; router.kv_follower.KVFollower."""

    async def run(self) -> None:
        """Until cancelled."""

    def ask(self, ask: Ask) -> None:
        """Send one request; never waits."""


Follow = Callable[[str, WorkerInfo, Callable[[FeedWord], None]], Follower]
"""Makes the follower of the worker that the words shall call by the first argument."""


class PublicFeeds:
    """Owns the followers, by incarnation. Lives in one asyncio loop."""

    def __init__(self, follow: Follow, start: Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]) -> None:
        """`start` makes a task that ends by cancellation only."""
        self._follow = follow
        self._start = start
        self._open: dict[str, tuple[Follower, asyncio.Task[None]]] = {}

    def open(self, worker: str, info: WorkerInfo, handle: Callable[[FeedWord], None]) -> None:
        """Begin to read the feed of an incarnation that is not read yet."""
        follower = self._follow(worker, info, handle)
        self._open[worker] = (follower, self._start(follower.run()))

    def ask(self, worker: str, ask: Ask) -> None:
        """Nothing happens when that feed is not read."""
        if worker in self._open:
            self._open[worker][0].ask(ask)

    def leave(self, worker: str) -> None:
        """Stop to read. Idempotent."""
        opened = self._open.pop(worker, None)
        if opened is not None:
            opened[1].cancel()

    async def close(self) -> None:
        """Stop to read all of them."""
        tasks = [task for _, task in self._open.values()]
        self._open.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
