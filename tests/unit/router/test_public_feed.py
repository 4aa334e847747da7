"""A router that reads prefix events from a worker's public feed, over real sockets, and one that cannot."""

import asyncio
import random
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from engine.core.digest import page_keys
from engine.core.messages import SendPrefixes
from engine.core.types import Sampling, WorkerInfo
from engine.server.kv_events.config import FeedConfig
from engine.wire.worker_client import WorkerClient
from router.api import GenerateCall
from router.config import RouterConfig
from router.core import RouterCore
from router.feeds import FeedWord
from router.kv_follower import FeedPlace, KVFollower
from router.policies.registry import make_policy
from router.service import RouterService
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.thread_worker import Worker, start_fake_worker
from tests.fakes.virtual_worker import KEY
from tests.fakes.workers import worker_info

WAIT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def routing(
    address: str, patience_s: float = 60.0, key: bytes = KEY
) -> AsyncIterator[tuple[RouterService, RouterCore]]:
    """A router that would rather read public feeds."""

    def follow(worker: str, info: WorkerInfo, handle: Callable[[FeedWord], None]) -> KVFollower:
        return KVFollower(worker, FeedPlace.of(info.topology), key, handle)

    config = RouterConfig(public_feeds=True, feed_patience_s=patience_s)
    core = RouterCore(config, random.Random(1), lambda model, rng: make_policy("cost", model, rng))
    service = RouterService(core, lambda address: WorkerClient(address, key), follow=follow)
    await service.start()
    service.add_worker(address)
    try:
        yield service, core
    finally:
        await service.stop()


async def ask(service: RouterService, tokens: list[int]) -> int:
    """Serve one call; returns the tokens that were cached."""
    call = GenerateCall("call", array("i", tokens), Sampling(temperature=0.0, max_tokens=5), WAIT_S)
    cached = None
    async with aclosing(service.generate(call)) as deltas:
        async for delta in deltas:
            cached = delta.cached_tokens if cached is None else cached
    assert cached is not None
    return cached


def cached_keys(worker: Worker) -> set[int]:
    """Read while nothing runs."""
    return {key for event in worker._parts.core.stored_pages() for key in page_keys(event.digests)}


@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_index_follows_the_feed_and_the_session_says_nothing_of_pages(encrypted: bool) -> None:
    worker = start_fake_worker("decode", kv_events=FeedConfig("127.0.0.1", 0, 0, encrypted), num_pages=24)
    try:
        async with routing(worker.info.address) as (service, core):
            await until(lambda: any(feed.synced for feed in core.view.feeds.values()))
            (feed,) = core.view.feeds.values()
            for first in (0, 0, 100, 200, 0):  # more than the pool holds: some pages go again
                await ask(service, list(range(first, first + 40)))
            await until(lambda: {key for part in core.view.index._parts for key in part} == cached_keys(worker))
            assert feed.is_public and feed.synced and core.view.feed_counts.losses == 0
    finally:
        worker.stop()


async def test_where_the_feed_cannot_be_reached_the_session_is_asked() -> None:
    async with FakeCluster(b"any") as cluster:
        info = worker_info("d1")
        labels = (("kv_events", "tcp://nobody.invalid:1"), ("kv_replay", "no endpoint at all"))
        worker = await cluster.start(replace(info, topology=labels))
        async with routing(worker.info.address, patience_s=0.1, key=b"any") as (service, core):
            await until(lambda: bool(core.view.feeds))
            (feed,) = core.view.feeds.values()
            assert feed.is_public
            await until(lambda: feed.synced)
            assert not feed.is_public
            await ask(service, list(range(20)))
            await until(lambda: core.view.index.num_pages(feed.slot) == len(worker.worker.cache.parents) > 0)
            assert SendPrefixes() in worker.worker.commands
