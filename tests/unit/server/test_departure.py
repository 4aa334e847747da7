"""When a worker that was asked to leave may go."""

from engine.server.departure import QUIET_S, Departure


def test_nobody_leaves_unasked() -> None:
    assert not Departure().may_exit(True, 1e9)


def test_it_leaves_after_a_while_without_anything() -> None:
    departure = Departure()
    departure.ask(60.0, 1.0)
    assert not departure.may_exit(True, 1.0 + QUIET_S / 2)
    assert not departure.may_exit(False, 5.0)
    assert not departure.may_exit(True, 5.0 + QUIET_S / 2), "work that came meanwhile counts"
    assert departure.may_exit(True, 5.0 + QUIET_S)


def test_its_time_ends_whatever_is_left() -> None:
    departure = Departure()
    departure.ask(60.0, 0.0)
    departure.ask(10.0, 5.0)
    departure.ask(90.0, 6.0)
    assert not departure.may_exit(False, 14.9)
    assert departure.may_exit(False, 15.0)
