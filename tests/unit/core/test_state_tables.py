"""The two tables of the core, event by event."""

from itertools import product

import pytest

from engine.core import lease as leases
from engine.core import request as requests
from engine.core.errors import IllegalEvent
from engine.core.lease import Lease, LeaseEvent, LeaseState
from engine.core.radix_tree import RadixTree
from engine.core.request import Event, Leg, RequestState, Stage
from tests.fakes.core import make_request


def make_lease(state: LeaseState) -> Lease:
    node, _ = RadixTree(1, "").match(b"", b"", 0)
    return Lease(make_request(7, [1]), node, [], 0, state)


def make_state(stage: Stage) -> RequestState:
    state = RequestState(make_request(1, [1]), 0, 2, Leg.WHOLE)
    state.stage = stage
    return state


@pytest.mark.parametrize(("state", "event"), list(product(LeaseState, LeaseEvent)))
def test_a_lease_follows_its_table_and_nothing_else(state: LeaseState, event: LeaseEvent) -> None:
    lease = make_lease(state)
    if (state, event) in leases.TRANSITIONS:
        lease.apply(event)
        assert lease.state is leases.TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalEvent, match=f"request 7 is {state} and got {event}"):
        lease.apply(event)
    assert lease.state is state


@pytest.mark.parametrize(("stage", "event"), list(product(Stage, Event)))
def test_a_request_follows_its_table_and_nothing_else(stage: Stage, event: Event) -> None:
    state = make_state(stage)
    if (stage, event) in requests.TRANSITIONS:
        state.apply(event)
        assert state.stage is requests.TRANSITIONS[stage, event]
        return
    with pytest.raises(IllegalEvent, match=f"request 1 is {stage} and got {event}"):
        state.apply(event)
    assert state.stage is stage


def test_pages_that_are_being_filled_can_only_be_quarantined() -> None:
    ways_out = {state for (before, _), state in leases.TRANSITIONS.items() if before is LeaseState.FILLING}
    assert LeaseState.RELEASED not in ways_out
    ends = {event for (before, event) in leases.TRANSITIONS if before is LeaseState.QUARANTINED}
    assert ends == {LeaseEvent.LAND, LeaseEvent.SETTLE}, "only the end of the operation ends a quarantine"


def test_released_and_ended_are_final() -> None:
    assert LeaseState.RELEASED not in {before for before, _ in leases.TRANSITIONS}
    assert Stage.ENDED not in {before for before, _ in requests.TRANSITIONS}
    assert all((stage, Event.END) in requests.TRANSITIONS for stage in Stage if stage is not Stage.ENDED)


def test_a_lease_counts_its_operations() -> None:
    lease = make_lease(LeaseState.RESERVED)
    lease.fill()
    lease.fill()
    lease.settle()
    assert (lease.state, lease.num_ops) == (LeaseState.FILLING, 1)
    with pytest.raises(IllegalEvent):
        lease.apply(LeaseEvent.PROVE)
    lease.settle()
    assert (lease.state, lease.num_ops) == (LeaseState.RESERVED, 0)
    with pytest.raises(IllegalEvent):
        lease.settle()
    assert lease.num_ops == 0


def test_a_quarantine_ends_with_the_last_operation() -> None:
    lease = make_lease(LeaseState.RESERVED)
    lease.fill()
    lease.fill()
    lease.apply(LeaseEvent.ABANDON)
    lease.settle()
    assert lease.state is LeaseState.QUARANTINED
    lease.settle()
    assert lease.state is LeaseState.RELEASED
