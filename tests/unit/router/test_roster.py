"""Which addresses of a name become workers, and when one is given up."""

import pytest

from router.roster import PATIENCE, Change, Roster

A, B = "10.0.0.1:5001", "10.0.0.2:5001"
NONE: frozenset[str] = frozenset()


def test_addresses_join_once() -> None:
    roster = Roster()
    assert roster.update(frozenset((B, A)), NONE) == Change((A, B), ())
    assert roster.update(frozenset((B, A)), NONE) == Change((), ())


def test_one_that_the_name_lacks_for_a_while_is_given_up_and_may_come_back() -> None:
    roster = Roster()
    roster.update(frozenset((A, B)), NONE)
    for _ in range(PATIENCE - 1):
        assert roster.update(frozenset((B,)), NONE) == Change((), ())
    assert roster.update(frozenset((B,)), NONE) == Change((), (A,))
    assert roster.update(frozenset((A, B)), NONE) == Change((A,), ())


@pytest.mark.parametrize("found", [NONE, frozenset((B,))])
def test_who_still_answers_stays_whatever_the_name_says(found: frozenset[str]) -> None:
    roster = Roster()
    roster.update(frozenset((A,)), NONE)
    for _ in range(3 * PATIENCE):
        assert A not in roster.update(found, frozenset((A,))).removed
    assert [roster.update(found, NONE).removed.count(A) for _ in range(PATIENCE)] == [0] * (PATIENCE - 1) + [1]


def test_an_address_that_flickers_stays() -> None:
    roster = Roster()
    roster.update(frozenset((A,)), NONE)
    for _ in range(PATIENCE):
        assert roster.update(NONE, NONE) == Change((), ()) or PATIENCE == 1
        assert roster.update(frozenset((A,)), NONE) == Change((), ())
