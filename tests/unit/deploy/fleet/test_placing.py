"""Which node a worker goes to, and what is said when there is none."""

from deploy.fleet.placing import PACK, SPREAD, Need, Node, Strategy, Taken, choose, lacks

NEED = Need({"GPU": 2}, {})


def node(id: str, free: float = 8, total: float = 8, **labels: str) -> Node:
    return Node(id, {"GPU": total}, {"GPU": free}, labels)


def given(node: str, kind: str = "decode", gpus: float = 2) -> Taken:
    return Taken(node, kind, {"GPU": gpus})


def test_spread_goes_away_from_its_own_pool_first_and_then_from_everybody() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert choose(NEED, "decode", nodes, []) == "a"
    assert choose(NEED, "decode", nodes, [given("a"), given("b", "prefill")]) == "c"
    assert choose(NEED, "decode", nodes[:2], [given("a"), given("b", "prefill"), given("b", "prefill")]) == "b"


def test_pack_goes_where_most_of_the_fleet_is_while_it_fits() -> None:
    nodes = [node("a"), node("b", 3)]
    strategy = Strategy(PACK)
    assert choose(NEED, "decode", nodes, [given("b", "prefill", 1)], strategy) == "b"
    assert choose(NEED, "decode", nodes, [given("b", "prefill", 7)], strategy) == "a"


def test_topology_is_gone_by_instead_of_nodes() -> None:
    nodes = [node("a", rack="1"), node("b", rack="1"), node("c", rack="2")]
    assert choose(NEED, "decode", nodes, [given("a")], Strategy(SPREAD, "rack")) == "c"
    assert choose(NEED, "decode", nodes, [given("a")], Strategy(PACK, "rack")) == "a"
    full = [node("a", 0, rack="1"), *nodes[1:]]
    assert choose(NEED, "decode", full, [given("a", gpus=8)], Strategy(PACK, "rack")) == "b"
    spread = [given("a"), given("b"), given("c")]
    assert choose(NEED, "decode", nodes, spread, Strategy(SPREAD, "rack")) == "c"


def test_all_ranks_of_a_worker_are_on_one_node_or_it_is_not_placed() -> None:
    assert choose(NEED, "decode", [node("a", 1), node("b", 1)], []) is None
    assert lacks(NEED, [node("a", 1), node("b", 1)], []) == "lacks GPU 2 (the best node has 1 left of 8)"


def test_what_was_just_given_away_counts_though_ray_does_not_say_so_yet() -> None:
    assert choose(NEED, "decode", [node("a", 2, 2)], [given("a")]) is None
    assert choose(NEED, "decode", [node("a", 2, 4)], [given("a")]) == "a"


def test_labels_must_be_there_and_bytes_are_said_as_such() -> None:
    need = Need({"memory": float(64 << 30)}, {"zone": "x"})
    big = Node("a", {"memory": float(32 << 30)}, {"memory": float(16 << 30)}, {"zone": "x"})
    other = Node("b", {"memory": float(99 << 30)}, {"memory": float(99 << 30)}, {})
    assert choose(need, "decode", [big, other], []) is None
    assert lacks(need, [big, other], []) == "lacks memory 64.0 GiB (the best node has 16.0 GiB left of 32.0 GiB)"
    assert lacks(need, [other], []) == "no node has the labels zone=x"
    assert lacks(need, [], []) == "the cluster has no node"


def test_a_process_that_needs_nothing_fits_everywhere() -> None:
    assert choose(Need({}, {}), "router", [node("a", 0)], []) == "a"


def test_new_workers_of_an_update_spread_among_themselves() -> None:
    """Old ones on `b` are about to leave: they keep no new one away from there."""
    taken = [given("a", "decode new"), given("b", "decode old"), given("b", "prefill old")]
    assert choose(NEED, "decode new", [node("a"), node("b")], taken) == "b"
