"""Whatever dies, is scaled or updated in whatever order: the reconciler's rules hold, and the fleet ends as wanted."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.fleet.autoscale import Autoscaler, Bounds, Objectives, Sample, ScaleConfig, pressure
from deploy.fleet.plan import Drain, Phase, Place, Pool, Remove, Restart, Start, after_death, decide
from tests.fakes.fleets import FakeFleet

pool_sizes = st.integers(0, 4)
events = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 9)),
        st.tuples(st.just("die"), st.integers(0, 9)),
        st.tuples(st.just("scale"), pool_sizes),
        st.tuples(st.just("update"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.integers(0, 9)),
        st.tuples(st.just("role"), st.integers(0, 9)),
        st.tuples(st.just("controller"), st.integers(0, 9)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(pool_sizes, st.sampled_from([(1, 0), (2, 0), (1, 1)]), events)
def test_rules_hold_at_every_step_and_it_ends_as_wanted(
    count: int, limits: tuple[int, int], events: list[tuple[str, int]]
) -> None:
    """FakeFleet asserts them: nobody is one too many, and the last ready one of a pool stays."""
    fleet = FakeFleet([Pool("prefill", count, "v0", *limits), Pool("decode", 1, "v0", *limits)])
    for kind, number in events:
        if kind == "scale":
            fleet.pools = [replace(fleet.pools[0], count=number), fleet.pools[1]]
        elif kind == "role":
            fleet.change_role(number)
        elif kind == "update":
            fleet.pools = [replace(pool, version=f"v{number}") for pool in fleet.pools]
        elif kind == "die":
            fleet.kill(number)
        elif kind == "controller":
            fleet.lose_controller()
        elif kind == "step":
            fleet.advance(number)
        else:
            fleet.now += number
        fleet.reconcile()
    fleet.run_until_quiet()
    for pool in fleet.pools:
        mine = [place for place in fleet.places.values() if place.pool == pool.name]
        assert [(place.phase, place.version) for place in mine] == [(Phase.READY, pool.version)] * pool.count
    assert fleet.actions_now() == []


@settings(max_examples=200, deadline=None)
@given(pool_sizes, st.lists(st.integers(0, 9), max_size=30), st.sets(st.integers(0, 9)), st.booleans())
def test_a_new_controller_changes_only_what_is_not_as_wanted(
    count: int, steps: list[int], dead: set[int], is_updated: bool
) -> None:
    """Some processes died while nobody looked, and the file may be another one."""
    fleet = FakeFleet([Pool("prefill", count, "v0"), Pool("decode", 2, "v0")])
    fleet.reconcile()
    for number in steps:
        fleet.advance(number)
        fleet.reconcile()
    numbers = {id: number for number, id in enumerate(sorted(fleet.places))}
    adopted = fleet.lose_controller(lambda place: numbers[place.id] in dead)
    assert not set(adopted.strays) & set(adopted.places)
    running = {id for id, place in fleet.places.items() if place.phase is Phase.UP}
    if is_updated:
        fleet.pools = [replace(pool, version="v1") for pool in fleet.pools]
    acted = fleet.reconcile()
    assert not [action for action in acted if isinstance(action, Remove) and action.id in running]
    if not is_updated:
        assert all(isinstance(action, Start) for action in acted), "what is there is as wanted"
    fleet.run_until_quiet()
    for pool in fleet.pools:
        mine = [place for place in fleet.places.values() if place.pool == pool.name]
        assert [(place.phase, place.version) for place in mine] == [(Phase.READY, pool.version)] * pool.count
    if not is_updated:
        assert running <= fleet.places.keys()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.sampled_from([(1, 0), (1, 1), (0, 1)]), st.lists(st.integers(0, 9), max_size=40))
def test_an_update_never_leaves_fewer_ready_than_it_may(count: int, limits: tuple[int, int], steps: list[int]) -> None:
    """Nobody dies here: what is missing, the update took away."""
    surge, unavailable = limits
    count += surge == 0  # the last one cannot be replaced without room for a second
    fleet = FakeFleet([Pool("prefill", 2, "v0"), Pool("decode", count, "v0", surge, unavailable)])
    fleet.run_until_quiet()
    fleet.pools = [replace(pool, version="v1") for pool in fleet.pools]
    fleet.reconcile()
    for number in steps:
        fleet.advance(number)
        fleet.reconcile()
        assert fleet.num_ready("decode") >= max(count - unavailable, 1)
        assert len(fleet.places) <= 2 + count + max(surge, 1)
        assert sum(place.phase is not Phase.READY for place in fleet.places.values()) <= 1, "one at a time"
    fleet.run_until_quiet()
    assert {(place.version, place.phase) for place in fleet.places.values()} == {("v1", Phase.READY)}


@given(st.integers(1, 6), st.integers(1, 6))
def test_what_is_removed_serves_nobody_and_what_is_drained_may_serve(num_places: int, count: int) -> None:
    phases = list(Phase)
    places = [Place(f"decode-{i}", "decode", "v", phases[i % len(phases)]) for i in range(num_places)]
    by_id = {place.id: place.phase for place in places}
    for action in decide([Pool("decode", count, "v")], places, 0.0):
        if isinstance(action, Drain):
            assert by_id[action.id] in (Phase.UP, Phase.READY)
        elif isinstance(action, Remove):
            assert by_id[action.id] not in (Phase.UP, Phase.READY)
        else:
            assert isinstance(action, Start) and action.place.phase is Phase.PLACING


@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=12))
def test_deaths_in_a_row_are_given_up_in_bounded_time_and_late_ones_never(lives: list[float]) -> None:
    config = Restart(max_deaths=3, first_s=0.1, max_s=1.0, healthy_after_s=10.0)
    place, now, in_a_row = Place("decode-0", "decode", "v"), 0.0, 0
    for life_s in lives:
        place = replace(place, phase=Phase.READY, ready_s=now)
        now += life_s
        place = after_death(place, config, now)
        in_a_row = 1 if now - place.ready_s >= 10.0 else in_a_row + 1
        assert (place.phase is Phase.GIVEN_UP) == (in_a_row > 3)
        if place.phase is Phase.GIVEN_UP:
            return
        assert 0.0 < place.retry_s - now <= 1.0


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.0, 20.0),
    st.integers(1, 8),
    st.floats(0.3, 0.9),
    st.integers(1, 3),
)
def test_a_constant_load_ends_with_one_number_of_workers(load: float, start: int, low: float, max_step: int) -> None:
    """`load` is how many workers it would keep fully busy."""
    scaler = Autoscaler({"prefill": Bounds(1, 8)}, ScaleConfig(low, 2.0, 5.0, 3.0, max_step))
    objectives, count, changes = Objectives(max_busy=1.0), start, []
    for now in range(400):
        sample = Sample(count, tokens_per_s=1000.0, new_tokens_per_s=1000.0 * load)
        reading = pressure("prefill", sample, objectives)
        decision = scaler.decide("prefill", count, sample, reading, float(now))
        if decision is not None:
            assert 1 <= decision.count <= 8 and abs(decision.count - count) <= max_step
            if changes:
                assert now - changes[-1][0] >= 3.0, "cool-down"
            changes.append((float(now), decision.count - count))
            count = decision.count
    turns = sum((a[1] > 0) != (b[1] > 0) for a, b in pairwise(changes))
    assert turns <= 1, f"it went back and forth: {changes}"
    assert not changes or changes[-1][0] < 200
    assert count == 8 or load / count <= 1.0 + 1e-9
    assert count == 1 or load / (count - 1) >= low
