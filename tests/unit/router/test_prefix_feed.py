from engine.core.digest import page_keys
from engine.core.messages import KVEvent, PagesCleared, PagesRemoved, PagesStored
from router.prefix_feed import BEHIND_S, REPLAY_S, AskReplay, AskSnapshot, PrefixFeed
from router.prefix_index import PrefixIndex

A, B, C, D = (bytes([i + 1]) * 16 for i in range(4))


def digest(*pages: bytes) -> int:
    total = 0
    for key in page_keys(pages):
        total ^= key
    return total


def stored(*pages: bytes, parent: bytes = b"") -> PagesStored:
    return PagesStored(parent, pages)


def make(max_pages: int = 10, replays: bool = False) -> tuple[PrefixIndex, PrefixFeed]:
    index = PrefixIndex()
    return index, PrefixFeed(index, max_pages, replays=replays)


def following(replays: bool) -> tuple[PrefixIndex, PrefixFeed]:
    index, feed = make(replays=replays)
    feed.apply(4, [PagesCleared(), stored(A, B)])
    assert feed.synced and feed.next_ask(0.0) is None
    return index, feed


def test_batches_in_order_are_the_workers_cache() -> None:
    index, feed = make()
    assert feed.next_ask(0.0) == AskSnapshot(), "who joins may hold something already"
    feed.apply(1, [PagesCleared(), stored(A, B)])
    assert feed.synced and index.match([A, B, C]) == {feed.slot: 2}
    feed.apply(2, [PagesRemoved((B,)), stored(C, parent=A)])
    assert index.match([A, B]) == {feed.slot: 1} and index.match([A, C]) == {feed.slot: 2}
    assert feed.next_ask(100.0) is None


def test_where_nothing_can_be_replayed_a_gap_is_a_loss_and_it_asks_less_and_less_often() -> None:
    index, feed = following(replays=False)
    feed.apply(6, [stored(C)])
    assert not feed.synced and index.match([A]) == {} == index.match([C])
    assert feed.next_ask(0.0) == AskSnapshot() and feed.next_ask(0.5) is None
    assert feed.next_ask(1.0) == AskSnapshot() and feed.next_ask(2.5) is None
    assert feed.next_ask(3.0) == AskSnapshot()
    feed.apply(5, [PagesCleared(), stored(A)])
    assert feed.synced and index.match([A]) == {feed.slot: 1} == index.match([C]), "the batch after it had waited"


def test_a_gap_is_closed_by_a_replay_and_nothing_is_forgotten_meanwhile() -> None:
    index, feed = following(replays=True)
    feed.apply(7, [stored(D)])
    assert feed.next_ask(0.0) == AskReplay(5) and feed.next_ask(0.1) is None
    assert index.match([A, B]) == {feed.slot: 2} and index.match([D]) == {}
    for seq, events in ((5, [PagesRemoved((B,))]), (6, [stored(C)]), (7, [stored(D)])):
        feed.apply(seq, list(events))
    assert (feed.seq, feed.synced, feed.next_ask(0.2)) == (7, True, None)
    assert index.match([A, B]) == {feed.slot: 1} == index.match([C]) == index.match([D])


def test_a_replay_that_does_not_come_or_cannot_ends_in_a_snapshot() -> None:
    for replayed_too_late in (True, False):
        index, feed = following(replays=True)
        feed.apply(7, [stored(D)])
        assert feed.next_ask(0.0) == AskReplay(5)
        if replayed_too_late:
            feed.replayed()
            assert not feed.synced and feed.next_ask(0.1) == AskSnapshot()
        else:
            assert feed.next_ask(REPLAY_S) == AskSnapshot()
        assert index.match([A]) == {}, "nobody knows how long ago that was true"
        feed.apply(9, [stored(C, parent=D)])
        feed.apply(8, [PagesCleared(), stored(D)])
        assert index.match([D, C]) == {feed.slot: 2}, "what came while the snapshot was on its way"


def test_a_replay_may_take_long_while_it_goes_on_and_may_have_gaps_itself() -> None:
    _, feed = following(replays=True)
    feed.apply(6, [])
    assert feed.next_ask(0.0) == AskReplay(5)
    feed.apply(9, [])
    feed.apply(5, [])
    assert feed.seq == 6 and feed.next_ask(REPLAY_S + 1) is None
    feed.replayed()
    assert feed.next_ask(REPLAY_S + 1) == AskReplay(7)
    assert feed.next_ask(REPLAY_S + 2) == AskSnapshot()


def test_a_new_gap_gets_a_replay_of_its_own() -> None:
    _, feed = following(replays=True)
    feed.apply(6, [])
    assert feed.next_ask(0.0) == AskReplay(5)
    feed.apply(5, [])
    feed.apply(8, [])
    assert feed.next_ask(0.1) == AskReplay(7)


def test_late_and_repeated_batches_change_nothing() -> None:
    index, feed = following(replays=True)
    feed.apply(5, [stored(C)])
    for seq, events in ((5, [PagesRemoved((A,))]), (4, [PagesCleared()]), (3, [stored(D)])):
        feed.apply(seq, list(events))
    assert index.match([A, B]) == {feed.slot: 2} and index.match([C]) == {feed.slot: 1} and index.match([D]) == {}


def test_another_view_than_the_workers_is_given_up() -> None:
    for seq in (4, None):
        index, feed = following(replays=True)
        feed.report(digest(A, B), seq, 0.0)
        assert feed.synced
        feed.report(digest(A, C), 3, 0.0)
        assert feed.synced, "that was long ago"
        feed.report(digest(A, C), seq, 0.0)
        assert not feed.synced and index.match([A]) == {} and feed.next_ask(0.0) == AskSnapshot()


def test_batches_lost_at_the_end_are_missed_by_the_workers_own_count() -> None:
    _, feed = following(replays=True)
    feed.report(digest(A), 5, 0.0)
    assert feed.next_ask(BEHIND_S / 2) is None, "it may be on its way"
    assert feed.next_ask(BEHIND_S) == AskReplay(5)
    feed.apply(5, [PagesRemoved((B,))])
    assert feed.next_ask(BEHIND_S) is None
    feed.report(digest(A), 5, 1.0)
    assert feed.synced


def test_another_incarnation_has_nothing_of_the_one_before() -> None:
    index, feed = following(replays=True)
    feed.met(1)
    assert feed.synced
    feed.met(2)
    assert not feed.synced and index.match([A]) == {}
    feed.apply(1, [PagesCleared(), stored(B)])
    assert feed.synced and index.match([B]) == {feed.slot: 1}


def test_a_worker_that_says_to_hold_more_than_it_can_is_not_believed() -> None:
    index, feed = make(max_pages=2)
    feed.next_ask(0.0)
    feed.apply(1, [PagesCleared(), stored(A, B, C), stored(D)])
    assert not feed.synced and index.num_pages(feed.slot) == 0 and len(index) == 0
    assert feed.next_ask(0.1) is None, "not in a tight loop with a worker that repeats it"


def test_tiers_are_kept_apart() -> None:
    index, feed = following(replays=False)
    feed.apply(5, [PagesStored(b"", (A, B, C), "host"), PagesRemoved((B,))])
    assert feed.tiers == {"device": 1, "host": 3}
    assert index.match([A, B, C])[feed.slot] == 1
    feed.report(digest(A), None, 0.0)
    assert feed.synced
    feed.close()
    assert len(index) == 0


def test_what_waits_is_bounded() -> None:
    index, feed = make(replays=True)
    for seq in range(5000, 10, -1):
        events: list[KVEvent] = [stored(seq.to_bytes(16, "little"))]
        feed.apply(seq, events)
    assert len(feed._waiting) == 1024 and len(index) == 0
