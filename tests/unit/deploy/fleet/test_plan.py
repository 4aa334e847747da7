"""What is done next, in the cases that an operator meets."""

from dataclasses import replace

from deploy.fleet.plan import Drain, Phase, Place, Pool, Remove, Restart, Start, after_death, decide, next_wake_s

POOL = Pool("decode", 2, "new")


def place(index: int, phase: Phase = Phase.READY, version: str = "new", pool: str = "decode") -> Place:
    return Place(f"decode-{index}", pool, version, phase)


def test_an_empty_fleet_starts_all_at_once_with_the_lowest_free_numbers() -> None:
    assert decide([POOL], [], 0.0) == [Start(place(0, Phase.PLACING)), Start(place(1, Phase.PLACING))]
    assert decide([POOL], [place(0)], 0.0) == [Start(place(1, Phase.PLACING))]


def test_who_serves_nobody_goes_first_and_of_equal_ones_the_last() -> None:
    ready = [place(0), place(1), place(10)]
    assert decide([POOL], ready, 0.0) == [Drain("decode-10")]
    for phase, action in (
        (Phase.STARTING, Remove),
        (Phase.GIVEN_UP, Remove),
        (Phase.WAITING, Remove),
        (Phase.UP, Drain),
    ):
        assert decide([POOL], [place(0, phase), *ready[1:]], -1.0) == [action("decode-0")]


def test_the_last_ready_one_stays_while_others_are_on_their_way() -> None:
    one = replace(POOL, count=1)
    assert decide([one], [place(0), place(1, Phase.STARTING)], 0.0) == [Remove("decode-1")]
    assert decide([one], [place(0), place(1, Phase.CHANGING)], 0.0) == []
    assert decide([one], [place(0), place(1, Phase.UP)], 0.0) == [Drain("decode-1")]
    assert decide([replace(POOL, count=0)], [place(0)], 0.0) == [Drain("decode-0")]


def test_an_update_starts_one_waits_for_it_then_drains_one_old() -> None:
    old = [place(0, version="old"), place(1, version="old")]
    assert decide([POOL], old, 0.0) == [Start(place(2, Phase.PLACING))]
    for phase in (Phase.PLACING, Phase.STARTING, Phase.UP, Phase.ENDING, Phase.WAITING, Phase.GIVEN_UP):
        assert decide([POOL], [*old, replace(place(2, phase), retry_s=9.0)], 0.0) == []
    assert decide([POOL], [*old, place(2)], 0.0) == [Drain("decode-1")]
    assert decide([POOL], [old[0], place(1, Phase.DRAINING, "old"), place(2)], 0.0) == []
    assert decide([POOL], [old[0], place(2)], 0.0) == [Start(place(1, Phase.PLACING))]


def test_without_room_for_one_more_an_update_replaces_an_old_one_first() -> None:
    tight = replace(POOL, max_surge=0, max_unavailable=1)
    old = [place(0, version="old"), place(1, version="old")]
    assert decide([tight], old, 0.0) == [Drain("decode-1")]
    assert decide([tight], old[:1], 0.0) == [Start(place(1, Phase.PLACING))]
    assert decide([replace(tight, count=1)], old[:1], 0.0) == [], "the last one stays: the config refuses this"


def test_old_places_that_serve_nobody_make_room_at_once() -> None:
    old = [place(0, version="old"), place(1, Phase.GIVEN_UP, "old")]
    assert decide([POOL], old, 0.0) == [Remove("decode-1")]


def test_the_dead_come_back_after_a_pause_that_doubles_until_they_are_given_up() -> None:
    config = Restart(max_deaths=2, first_s=1.0, max_s=10.0, healthy_after_s=10.0)
    first = after_death(place(0), config, 100.0 - 95.0)
    assert (first.phase, first.retry_s) == (Phase.WAITING, 6.0)
    assert next_wake_s([place(1), first]) == 6.0
    assert decide([POOL], [first, place(1)], 5.9) == []
    assert decide([POOL], [first, place(1)], 6.0) == [Start(replace(first, phase=Phase.PLACING))]
    second = after_death(replace(first, phase=Phase.STARTING), config, 7.0)
    assert second.retry_s == 9.0
    third = after_death(replace(second, phase=Phase.STARTING), config, 10.0)
    assert third.phase is Phase.GIVEN_UP
    assert decide([POOL], [third, place(1)], 1e9) == [], "it stays, for everybody to see"
    healthy = after_death(replace(second, phase=Phase.READY, ready_s=10.0), config, 20.0)
    assert (healthy.phase, healthy.deaths) == (Phase.WAITING, 1)


def test_a_pool_that_is_gone_from_the_config_is_emptied() -> None:
    gone = Place("extra-0", "extra", "new", Phase.READY)
    assert decide([POOL], [place(0), place(1), gone, replace(gone, id="extra-1", phase=Phase.WAITING)], -1.0) == [
        Drain("extra-0"),
        Remove("extra-1"),
    ]


def test_a_worker_that_changes_its_role_counts_in_its_new_pool() -> None:
    pools = [replace(POOL, name="prefill", count=1), POOL]
    places = [
        Place("prefill-0", "prefill", "new", Phase.READY),
        place(0),
        Place("prefill-1", "decode", "new", Phase.CHANGING),
    ]
    assert decide(pools, places, 0.0) == []
