from dataclasses import replace

import pytest

from engine.core.errors import Incompatible
from engine.core.messages import PeerStatus
from engine.core.protocol import PROTOCOL
from engine.core.types import WorkerLoad
from router.config import HealthConfig
from router.cost_model import Work
from router.view import ClusterView
from router.worker import Health, LegKind, WorkerState
from tests.fakes.workers import worker_info

CONFIG = HealthConfig(hung_after_s=0.6, breaker_failures=1, breaker_open_s=1.0)


def make(*names: str) -> tuple[ClusterView, list[WorkerState]]:
    view = ClusterView(CONFIG)
    roles = {"p": ("prefill",), "d": ("decode",), "b": ("prefill", "decode")}
    return view, [view.join(worker_info(name, roles=roles[name[0]]), 0.0) for name in names]


def load(seq: int, queued_tokens: int = 0, running_rows: int = 0, step_s: float = 0.0) -> WorkerLoad:
    return WorkerLoad(seq, 0.0, 0, queued_tokens, running_rows, 64, 64, step_s, 0.0)


def names(workers: list[WorkerState]) -> list[str]:
    return [worker.info.id for worker in workers]


def test_who_is_silent_for_too_long_is_hung_until_it_speaks() -> None:
    view, (silent, talker) = make("d1", "d2")
    for step in range(1, 7):
        view.heard(talker, step / 10)
        assert view.check_silence(step / 10) == []
    view.heard(talker, 0.7)
    assert view.check_silence(0.7) == [silent]
    assert view.check_silence(0.75) == [], "told once"
    assert names(view.candidates(frozenset(), 0.75).decode) == ["d2"]
    view.heard(silent, 0.8)
    assert silent.health is Health.READY and len(view.candidates(frozenset(), 0.8).decode) == 2


def test_a_pause_of_the_router_itself_is_nobodys_fault() -> None:
    view, workers = make("d1", "d2")
    view.check_silence(0.0)
    assert view.check_silence(30.0) == []
    assert view.check_silence(30.2) == []
    assert view.check_silence(30.4) == workers, "but frames must come then"


def test_roles_make_candidates_and_any_worker_helps_when_no_decode_worker_can() -> None:
    view, (p, d, _) = make("p1", "d1", "b1")
    found = view.candidates(frozenset(), 0.0)
    assert (names(found.prefill), names(found.decode), names(found.whole)) == (["p1"], ["d1", "b1"], ["d1", "b1"])
    assert names(view.candidates(frozenset((d.key,)), 0.0).whole) == ["b1"]
    view, (p, d) = make("p1", "d1")
    d.draining = True
    assert names(view.candidates(frozenset(), 0.0).whole) == ["p1"]
    p.breaker.on_failure(0.0)
    assert names(view.candidates(frozenset(), 0.5).whole) == []
    assert names(view.candidates(frozenset((p.key,)), 1.0).whole) == ["p1"], "better than nobody"


def test_a_pair_is_used_once_it_has_proven_itself_and_while_it_works() -> None:
    view, (p, d) = make("p1", "d1")
    assert not view.can_hand_over(p, d, 0.0)
    ready = PeerStatus("p1", 1, True, "grpc", 1e9)
    assert view.on_peer_status(d, ready) == (p.key, d.key)
    assert view.on_peer_status(d, ready) is None, "no news"
    assert view.can_hand_over(p, d, 0.0) and not view.can_hand_over(d, p, 0.0)
    view.on_peer_status(d, replace(ready, ready=False, message="it died"))
    assert not view.can_hand_over(p, d, 0.0)
    view.on_peer_status(d, ready)
    view.pair_breaker(p.key, d.key).on_failure(0.0)
    assert not view.can_hand_over(p, d, 0.9) and view.can_hand_over(p, d, 1.0)


def test_what_a_worker_said_of_a_peer_is_kept_until_the_peer_is_forgotten() -> None:
    view, (d,) = make("d1")
    view.on_peer_status(d, PeerStatus("p1", 1, True))
    p = view.join(worker_info("p1", roles=("prefill",)), 0.0)
    assert view.can_hand_over(p, d, 0.0)
    view.leave(p.key)
    p = view.join(p.info, 0.0)
    assert view.can_hand_over(p, d, 0.0)
    view.leave(p.key)
    view.forget_source(p.key)
    assert not view.links
    view.check_integrity()


def test_a_worker_of_another_model_may_not_join_unless_it_replaces_itself() -> None:
    view, _ = make("d1")
    other = worker_info("d2")
    other = replace(other, model="b", layout=replace(other.layout, model_hash="b"))
    with pytest.raises(Incompatible, match=r"worker d2 serves b \(b\), the others serve test \(test-mod\)"):
        view.check_model(other)
    view.check_model(replace(other, id="d1"))
    view.models = frozenset(("b", worker_info("d1").layout.model_hash))
    view.check_model(other)
    with pytest.raises(Incompatible, match=r"worker d2 serves b \(c\), the others"):
        view.check_model(replace(other, layout=replace(other.layout, model_hash="c")))


def test_a_worker_of_a_far_protocol_may_not_join_and_a_near_one_may() -> None:
    view, _ = make("d1")
    view.check_model(replace(worker_info("d2"), protocol=PROTOCOL - 1))
    with pytest.raises(Incompatible, match=f"worker d2 speaks protocol {PROTOCOL + 2}"):
        view.check_model(replace(worker_info("d2"), protocol=PROTOCOL + 2))


def test_load_is_what_was_reported_and_what_was_sent_since() -> None:
    _, (p,) = make("p1")
    p.open_leg(1, LegKind.PREFILL, 1.0, Work(0, 100, 30))
    assert (p.queued_tokens, p.queued_pairs) == (100, 100 * 30 + 100 * 100 // 2)
    p.on_load(load(1, queued_tokens=80), now=1.005)
    assert p.queued_tokens == 180, "it was on its way when the worker spoke"
    p.on_load(load(2, queued_tokens=80), now=1.2)
    assert (p.queued_tokens, p.queued_pairs) == (80, 0)
    p.open_leg(2, LegKind.PREFILL, 1.3, Work(0, 50, 0))
    p.on_load(load(2, queued_tokens=80), now=2.0)
    assert p.queued_tokens == 130, "a report that is repeated knows no more than it did"


def test_rows_are_the_larger_of_what_is_reported_and_what_was_sent() -> None:
    _, (d,) = make("d1")
    d.open_leg(1, LegKind.DECODE, 0.0)
    d.open_leg(2, LegKind.WHOLE, 0.0, Work(0, 5, 0))
    assert d.num_rows == 2
    d.on_load(load(1, running_rows=7), now=0.1)
    assert d.num_rows == 7
    d.on_load(load(2, running_rows=0), now=0.2)
    d.close_leg(1)
    assert d.num_rows == 1


def test_what_was_said_of_a_source_that_left_goes_with_it_unless_it_may_come_back() -> None:
    view, (p, d) = make("p1", "d1")
    ready = PeerStatus("p1", 1, True, "grpc", 1e9)
    view.on_peer_status(d, ready)
    view.leave(p.key)
    assert view.links == {(p.key, d.key): ready}, "another session may find it again"
    view.forget_source(p.key)
    view.on_peer_status(d, replace(ready, ready=False, message="its peer left"))
    assert view.links == {}, "its last word is no news"
    p = view.join(worker_info("p1", roles=("prefill",)), 1.0)
    broken = replace(ready, ready=False, message="too slow")
    view.on_peer_status(d, broken)
    assert view.links == {(p.key, d.key): broken}
    view.leave(p.key)
    assert view.links == {}
    view.check_integrity()
