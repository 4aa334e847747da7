"""Whose subscription has arrived, and whose snapshot waits for it."""

from engine.server.kv_events.readers import Readers
from engine.wire.kv_events import READER

ONE, OTHER = READER + b"1", READER + b"2"


def test_a_snapshot_waits_for_the_subscription_of_its_reader() -> None:
    readers = Readers()
    assert not readers.may_have(ONE, b"client", b"asked")
    assert readers.heard(b"\1" + OTHER) == []
    assert readers.heard(b"\1" + ONE) == [(b"client", b"asked")]
    assert readers.may_have(ONE, b"client", b"asked")


def test_who_leaves_has_to_come_again() -> None:
    readers = Readers()
    readers.heard(b"\1" + ONE)
    readers.heard(b"\0" + ONE)
    assert not readers.may_have(ONE, b"client", b"asked")


def test_other_topics_and_words_are_nothing() -> None:
    readers = Readers()
    for word in (b"", b"\1", b"\1kv@w@m", b"\2" + ONE, b"\0"):
        assert readers.heard(word) == []
    assert not readers.may_have(ONE, b"client", b"asked")


def test_only_so_many_wait_and_the_last_question_of_each_counts() -> None:
    readers = Readers()
    for number in range(1001):
        readers.may_have(READER + b"%d" % number, b"client", b"asked")
    readers.may_have(READER + b"7", b"again", b"asked")
    assert readers.heard(b"\1" + READER + b"0") == [], "the oldest made room"
    assert readers.heard(b"\1" + READER + b"7") == [(b"again", b"asked")]
