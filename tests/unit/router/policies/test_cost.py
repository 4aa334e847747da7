"""The cost policy chooses what is cheapest, whoever has to wait."""

from random import Random

import pytest

from engine.core.messages import PeerStatus
from engine.core.types import WorkerLoad
from router.config import HealthConfig
from router.cost_model import CostModel, Work
from router.policies.base import RouteDecision, RouteRequest
from router.policies.cost import CostPolicy
from router.view import ClusterView
from router.worker import LegKind
from tests.fakes.workers import worker_info

MS_PER_TOKEN = 0.1


class Bench:
    def __init__(self, *names: str, transfer_ms: float = 5.0) -> None:
        self.view = ClusterView(HealthConfig())
        self.model = CostModel()
        roles = {"p": ("prefill",), "d": ("decode",), "b": ("prefill", "decode")}
        for name in names:
            self.view.join(worker_info(name, roles=roles[name[0]], num_pages=10_000), 0.0)
        for target in self.view:
            for source in self.view:
                self.view.on_peer_status(target, PeerStatus(source.info.id, 1, True, "x"))
        for i in range(200):
            self.model.on_first_token("any", Work(0, 100 * i, 0), MS_PER_TOKEN * 100 * i)
            self.model.on_transfer("any", 0, transfer_ms)
            self.model.on_step("any", 10 * i, 5.0 + 0.1 * i)

    def load(self, name: str, queued_tokens: int = 0, rows: int = 0, free_pages: int = 10_000) -> None:
        worker = self.view.workers[f"{name}@{1:016x}"]
        seq = worker.load.seq + 1 if worker.load else 1
        worker.on_load(WorkerLoad(seq, 0.0, 0, queued_tokens, rows, free_pages, 10_000, 0.0, 0.0), 0.0)

    def choose(
        self,
        num_tokens: int = 1000,
        max_new: int = 100,
        avoid_pairs: frozenset[tuple[str, str]] = frozenset(),
        always: bool = False,
        seed: int = 0,
        **cached: int,
    ) -> RouteDecision:
        policy = CostPolicy(self.model, Random(seed), always_hand_over=always)
        by_key = {f"{name}@{1:016x}": tokens for name, tokens in cached.items()}
        request = RouteRequest(num_tokens, max_new, by_key, avoid_pairs=avoid_pairs)
        decision = policy.choose(self.view, request, 0.0)
        assert decision is not None
        return decision

    def route(self, **kwargs: object) -> tuple[str | None, str]:
        decision = self.choose(**kwargs)  # type: ignore[arg-type]
        return decision.prefill and decision.prefill.partition("@")[0], decision.decode.partition("@")[0]


def test_a_long_prompt_is_handed_over_and_a_short_one_stays() -> None:
    bench = Bench("p", "d", transfer_ms=5.0)
    assert bench.route(num_tokens=1000) == ("p", "d")
    assert bench.route(num_tokens=20) == (None, "d")
    assert bench.route(num_tokens=20, always=True) == ("p", "d")


def test_what_the_decode_worker_holds_already_need_not_be_computed_elsewhere() -> None:
    assert Bench("p", "d").route(num_tokens=1000, d=980) == (None, "d")


def test_without_a_pair_a_prefill_worker_decodes_when_no_decode_worker_has_room() -> None:
    bench = Bench("p", "d")
    failed = frozenset({(f"p@{1:016x}", f"d@{1:016x}")})
    assert bench.route(num_tokens=1000, avoid_pairs=failed) == (None, "d")
    bench.load("d", queued_tokens=1000, free_pages=70)
    assert bench.route(num_tokens=1000, avoid_pairs=failed) == (None, "p"), "the queue will take them"
    bench.load("p", queued_tokens=100_000, free_pages=0)
    assert bench.route(num_tokens=1000, avoid_pairs=failed) == (None, "d"), "it would wait longer there"


def test_rows_that_would_be_held_up_speak_for_a_handoff() -> None:
    bench = Bench("p", "d", transfer_ms=5.0)
    bench.load("d", rows=20)
    assert bench.route(num_tokens=20) == ("p", "d")


def test_a_cached_prefix_draws_until_its_queue_costs_more() -> None:
    bench = Bench("p1", "p2", "d")
    assert bench.route(p1=900) == ("p1", "d")
    bench.load("p1", queued_tokens=1000)
    assert bench.route(p1=900) == ("p1", "d"), "computing it again would hold up others as well"
    bench.load("p1", queued_tokens=3000)
    assert bench.route(p1=900) == ("p2", "d")


def test_the_least_busy_decode_worker_wins_and_one_without_room_loses() -> None:
    bench = Bench("p", "d1", "d2")
    bench.load("d1", rows=50)
    bench.load("d2", rows=40)
    assert bench.route() == ("p", "d2")
    bench.load("d2", rows=40, free_pages=10)
    assert bench.route() == ("p", "d1")


def test_a_pair_that_failed_or_a_request_for_one_token_is_no_handoff() -> None:
    bench = Bench("p", "d")
    pair = frozenset({(f"p@{1:016x}", f"d@{1:016x}")})
    assert bench.route(avoid_pairs=pair) == (None, "d")
    assert bench.route(avoid_pairs=pair, always=True) == (None, "d")
    assert bench.route(max_new=1) == (None, "p")


def test_colocated_workers_run_whole_requests() -> None:
    bench = Bench("b1", "b2")
    assert bench.route(b2=900) == (None, "b2")
    bench.load("b2", rows=100)
    assert bench.route(b2=100) == (None, "b1")


def test_equal_routes_are_chosen_by_chance_and_the_same_seed_repeats() -> None:
    bench = Bench("p1", "p2", "d1", "d2")
    routes = [bench.route(seed=seed) for seed in range(40)]
    assert set(routes) == {(p, d) for p in ("p1", "p2") for d in ("d1", "d2")}
    assert routes == [bench.route(seed=seed) for seed in range(40)]


def test_a_queue_that_all_have_hides_no_difference() -> None:
    bench = Bench("p1", "p2", "d")
    for name in ("p1", "p2"):
        bench.load(name, queued_tokens=1_000_000)
    assert {bench.route(seed=seed, always=True, p2=500) for seed in range(20)} == {("p2", "d")}


def test_among_many_workers_the_ones_that_matter_are_paired() -> None:
    bench = Bench(*(f"p{i}" for i in range(30)), *(f"d{i}" for i in range(30)))
    for i in range(30):
        bench.load(f"p{i}", queued_tokens=100 * (i + 1))
        bench.load(f"d{i}", rows=10 * (i + 1))
    assert bench.route() == ("p0", "d0")
    assert bench.route(p29=1000) == ("p0", "d0") and bench.route(num_tokens=9000, p29=9000)[0] == "p29"


def test_the_prediction_is_told_by_part() -> None:
    bench = Bench("p", "d")
    bench.load("p", queued_tokens=500)
    bench.view.workers[f"d@{1:016x}"].open_leg(1, LegKind.DECODE, 0.0)
    predicted = bench.choose(p=200).predicted
    assert predicted.queue_ms == pytest.approx(50, rel=0.1) and predicted.prefill_ms == pytest.approx(80, rel=0.1)
    assert predicted.transfer_ms == pytest.approx(5, rel=0.1) and predicted.slowdown_ms > 80
    assert predicted.total_ms == pytest.approx(
        predicted.queue_ms + predicted.prefill_ms + predicted.transfer_ms + predicted.slowdown_ms
    )
