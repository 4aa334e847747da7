"""The public feed over real ZMQ sockets: whatever is lost, whoever restarts, the reader ends with the right view."""

import random
import time

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from engine.server.kv_events.publisher import FeedLimits
from engine.wire.kv_events import READER, SNAPSHOT_ASKED, STATE_ASKED, decode_state, sequence_from_bytes
from router.events import FeedBatch
from router.feeds import FeedWord
from router.kv_follower import FollowerConfig
from router.prefix_feed import BEHIND_S
from tests.fakes.kv_feed import PAGE_SIZE, TIMEOUT_S, Publisher, Reader, publishing


def lose(reader: Reader, num_batches: int) -> set[int]:
    """The next batches do not arrive, the first time that they are sent. Returns those that have not been sent yet."""
    left = set(range(reader.feed.seq + 1, reader.feed.seq + 1 + num_batches))

    def drop(word: FeedWord) -> bool:
        if not isinstance(word, FeedBatch) or word.seq not in left:
            return False
        left.remove(word.seq)
        return True

    reader.drop = drop
    return left


def fill(publisher: Publisher, num: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    for _ in range(num):
        publisher.store([chance.randrange(1000) for _ in range(PAGE_SIZE * chance.randrange(1, 6))])


async def test_who_joins_late_gets_all_and_then_what_changes() -> None:
    with publishing() as publisher:
        fill(publisher, 20)
        publisher.evict(5)
        async with Reader(publisher.place) as reader:
            await reader.follows(publisher)
            for step in range(20):
                fill(publisher, 3, seed=step)
                publisher.evict(4)
            await reader.follows(publisher)
        assert reader.feed._counts.losses == 0 and reader.feed.tiers == {"device": len(publisher.keys)}


async def test_a_snapshot_of_many_parts() -> None:
    with publishing() as publisher:
        for first in range(1500):
            publisher.store([first] * PAGE_SIZE)
        async with Reader(publisher.place) as reader:
            await reader.follows(publisher)
        assert len(reader.keys) == 1500


async def test_lost_batches_are_replayed() -> None:
    with publishing() as publisher:
        async with Reader(publisher.place) as reader:
            fill(publisher, 3)
            await reader.follows(publisher)
            reader.now = time.monotonic()  # from here on no time passes: only a replay can help
            lose(reader, 4)
            fill(publisher, 9, seed=1)
            await reader.follows(publisher)
            assert reader.feed._counts.gaps and not reader.feed._counts.losses


async def test_batches_that_were_lost_last_are_noticed_too() -> None:
    with publishing() as publisher:
        async with Reader(publisher.place) as reader:
            fill(publisher, 3)
            await reader.follows(publisher)
            reader.now = time.monotonic()
            on_their_way = lose(reader, 2)
            fill(publisher, 2, seed=1)
            await reader.until(lambda: reader.feed._behind is not None and not on_their_way)
            assert reader.feed.synced and not reader.feed._counts.gaps, "they may be on their way"
            reader.now += 2 * BEHIND_S  # and no more: only a replay can help, and both can be had by now
            await reader.follows(publisher)
            assert reader.feed._counts.gaps and not reader.feed._counts.losses


async def test_what_cannot_be_replayed_any_more_is_a_snapshot() -> None:
    with publishing(limits=FeedLimits(max_batches=5)) as publisher:
        async with Reader(publisher.place) as reader:
            fill(publisher, 3)
            await reader.follows(publisher)
            lose(reader, 20)
            fill(publisher, 30, seed=1)
            publisher.evict(3)
            await reader.follows(publisher)
            assert reader.feed._counts.losses == 1


@pytest.mark.parametrize("max_batches", [100_000, 20])
async def test_a_reader_that_is_too_slow_catches_up(max_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a replay, however long it takes; by a snapshot where the batches are gone."""
    if max_batches > 20:
        monkeypatch.setattr("router.prefix_feed.REPLAY_S", TIMEOUT_S)
    with publishing(limits=FeedLimits(max_batches=max_batches, subscriber_batches=10)) as publisher:
        async with Reader(publisher.place, FollowerConfig(state_s=0.05, max_unread=10)) as reader:
            publisher.store([1, 2, 3, 4])
            await reader.follows(publisher)
            # The reader's loop stands still meanwhile: sockets' buffers fill, and the publisher lets batches go.
            for step in range(400):
                publisher.store([step] * (500 * PAGE_SIZE))
            publisher.wait()
            await reader.follows(publisher)
            assert reader.feed._counts.gaps
            assert bool(reader.feed._counts.losses) == (max_batches == 20)


async def test_a_publisher_that_starts_again_is_another_one() -> None:
    with publishing() as first:
        fill(first, 10)
        port, replay_port = first.feed.ports
        async with Reader(first.place) as reader:
            await reader.follows(first)
            first.feed.close()
            with publishing(ports=(port, replay_port)) as second:
                fill(second, 4, seed=9)
                await reader.follows(second)
                assert not reader.keys & first.keys
                fill(second, 4, seed=10)
                await reader.follows(second)


async def test_a_reader_that_starts_again_needs_nothing_of_the_one_before() -> None:
    with publishing() as publisher:
        for seed in range(3):
            fill(publisher, 5, seed=seed)
            async with Reader(publisher.place) as reader:
                await reader.follows(publisher)


async def test_a_view_that_went_wrong_unseen_is_noticed_by_its_digest() -> None:
    with publishing() as publisher:
        async with Reader(publisher.place) as reader:
            fill(publisher, 5)
            await reader.follows(publisher)
            reader.index.remove(reader.feed.slot, list(publisher.keys)[:1])
            reader.index.store(reader.feed.slot, [12345])
            await reader.until(lambda: reader.feed._counts.stale == 1)
            await reader.follows(publisher)


async def test_an_encrypted_feed_is_read_by_who_knows_the_cluster_key_only() -> None:
    with publishing(encrypted=True) as publisher:
        fill(publisher, 5)
        async with Reader(publisher.place) as reader:
            await reader.follows(publisher)
        async with Reader(publisher.place, key=b"another key than the cluster's") as stranger:
            events = stranger._follower._dealer.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_DISCONNECTED
            )
            event = await recv_monitor_message(events)
            assert event["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
            assert stranger.words == []


async def test_a_snapshot_waits_until_its_reader_is_sure_to_get_what_comes_after_it() -> None:
    with publishing() as publisher, zmq.asyncio.Context() as context:
        fill(publisher, 5)
        dealer, sub, topic = context.socket(zmq.DEALER), context.socket(zmq.SUB), READER + b"late"
        dealer.connect(f"tcp://{publisher.place.replay.removeprefix('tcp://')}")
        for question in ((SNAPSHOT_ASKED, topic), (STATE_ASKED,)):
            await dealer.send_multipart((b"", *question))
        assert (await dealer.recv_multipart())[1] == STATE_ASKED, "the later question is answered first"
        for prefix in (b"", topic):
            sub.subscribe(prefix)
        sub.connect(f"tcp://{publisher.place.events.removeprefix('tcp://')}")
        _, kind, state, _, _ = await dealer.recv_multipart()
        assert kind == SNAPSHOT_ASKED
        fill(publisher, 1, seed=2)
        assert sequence_from_bytes((await sub.recv_multipart())[1]) == decode_state(state).last + 1
        context.destroy(linger=0)
