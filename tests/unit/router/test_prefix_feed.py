from engine.core.messages import PagesCleared, PagesRemoved, PagesStored
from router.prefix_feed import PrefixFeed
from router.prefix_index import PrefixIndex

A, B, C = (bytes([i]) * 16 for i in range(3))


def make(max_pages: int = 10) -> tuple[PrefixIndex, int, PrefixFeed]:
    index = PrefixIndex()
    slot = index.add_worker(max_pages)
    return index, slot, PrefixFeed(index, slot)


def test_batches_in_order_are_the_workers_cache() -> None:
    index, slot, feed = make()
    assert feed.should_ask(0.0), "who joins may hold something already"
    feed.apply(1, [PagesCleared(), PagesStored(b"", (A, B))])
    assert feed.synced and index.match([A, B, C]) == {slot: 2}
    feed.apply(2, [PagesRemoved((B,)), PagesStored(A, (C,))])
    assert index.match([A, B]) == {slot: 1} and index.match([A, C]) == {slot: 2}
    assert not feed.should_ask(100.0)


def test_after_a_gap_it_knows_less_never_more_and_asks() -> None:
    index, slot, feed = make()
    feed.apply(1, [PagesCleared(), PagesStored(b"", (A, B))])
    feed.apply(3, [PagesStored(b"", (C,))])
    assert not feed.synced and index.match([A]) == {} and index.match([C]) == {slot: 1}
    assert feed.should_ask(0.0) and not feed.should_ask(0.5)
    assert feed.should_ask(1.0) and not feed.should_ask(2.5) and feed.should_ask(3.0), "less and less often"
    feed.apply(3, [PagesCleared(), PagesStored(b"", (A,))])
    assert feed.synced and index.match([A]) == {slot: 1}


def test_a_worker_that_says_to_hold_more_than_it_can_is_not_believed() -> None:
    index, slot, feed = make(max_pages=2)
    feed.should_ask(0.0)
    feed.apply(1, [PagesCleared(), PagesStored(b"", (A, B, C))])
    assert not feed.synced and index.num_pages(slot) == 0
    assert not feed.should_ask(0.1), "not in a tight loop with a worker that repeats it"
