"""The policies for comparison do what their names say."""

from collections import Counter
from random import Random

import pytest

from engine.core.messages import PeerStatus
from router.config import HealthConfig
from router.cost_model import CostModel, Work
from router.policies.base import RouteRequest
from router.policies.registry import POLICY_NAMES, make_policy
from router.view import ClusterView
from router.worker import LegKind
from tests.fakes.workers import worker_info


def cluster(*names: str) -> ClusterView:
    view = ClusterView(HealthConfig())
    for name in names:
        view.join(worker_info(name, roles=("prefill",) if name[0] == "p" else ("decode",)), 0.0)
    for target in view:
        for source in view:
            view.on_peer_status(target, PeerStatus(source.info.id, 1, True, "x"))
    return view


def key(name: str) -> str:
    return f"{name}@{1:016x}"


def routes(view: ClusterView, policy: str, count: int = 12, **cached: int) -> list[tuple[str, str]]:
    chooser = make_policy(policy, CostModel(), Random(4))
    request = RouteRequest(100, 10, {key(name): tokens for name, tokens in cached.items()})
    found = []
    for _ in range(count):
        decision = chooser.choose(view, request, 0.0)
        assert decision is not None
        found.append((decision.computes_prompt.partition("@")[0], decision.decode.partition("@")[0]))
    return found


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_each_takes_a_pair_when_there_is_one_and_a_single_worker_when_not(policy: str) -> None:
    assert set(routes(cluster("p1", "d1"), policy)) <= {("p1", "d1"), ("d1", "d1")}
    assert set(routes(cluster("p1"), policy)) == {("p1", "p1")}
    assert set(routes(cluster("d1", "d2"), policy)) <= {("d1", "d1"), ("d2", "d2")}
    chooser = make_policy(policy, CostModel(), Random(1))
    assert chooser.choose(cluster(), RouteRequest(5, 5, {}), 0.0) is None


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_call_whose_handoffs_failed_twice_stays_on_one_worker_unless_it_must_move(policy: str) -> None:
    view, chooser = cluster("p1", "p2", "d1", "d2"), make_policy(policy, CostModel(), Random(1))
    failed = frozenset({(key("p1"), key("d1")), (key("p1"), key("d2"))})
    decision = chooser.choose(view, RouteRequest(50, 10, {}, avoid_pairs=failed), 0.0)
    assert decision is not None and decision.prefill is None and decision.decode.startswith("d")
    moved = chooser.choose(view, RouteRequest(50, 10, {}, avoid_pairs=failed, source=key("p2")), 0.0)
    assert moved is not None and moved.prefill == key("p2")


def test_round_robin_takes_turns() -> None:
    counts = Counter(routes(cluster("p1", "p2", "p3", "d1", "d2"), "round_robin", 12))
    assert Counter(p for p, _ in counts.elements()) == {"p1": 4, "p2": 4, "p3": 4}
    assert Counter(d for _, d in counts.elements()) == {"d1": 6, "d2": 6}


def test_random_takes_everybody() -> None:
    assert len(set(routes(cluster("p1", "p2", "d1", "d2"), "random", 60))) == 4


@pytest.mark.parametrize("policy", ["least_loaded", "power_of_two"])
def test_the_busy_one_gets_nothing(policy: str) -> None:
    view = cluster("p1", "p2", "d1", "d2")
    view.workers[key("p1")].open_leg(1, LegKind.PREFILL, 0.0, Work(0, 50, 0))
    view.workers[key("d2")].open_leg(1, LegKind.DECODE, 0.0)
    assert set(routes(view, policy)) == {("p2", "d1")}


def test_affinity_follows_a_long_match_else_the_emptiest_tree_else_the_load() -> None:
    view = cluster("p1", "p2", "d1")
    for name, pages in (("p1", 3), ("p2", 9)):
        view.index.store(view.workers[key(name)].slot, [100 * pages + i for i in range(pages)])
    assert set(routes(view, "prefix_affinity", p2=60)) == {("p2", "d1")}
    assert set(routes(view, "prefix_affinity", p2=50)) == {("p1", "d1")}
    for attempt in range(40):
        view.workers[key("p2")].open_leg(attempt, LegKind.PREFILL, 0.0)
    assert set(routes(view, "prefix_affinity", p2=100)) == {("p1", "d1")}
