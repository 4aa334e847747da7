"""While one model replaces another: no answer is of both."""

import pytest

from engine.core.errors import Incompatible
from engine.core.messages import Generate, PeerStatus
from kv_transfer.transports.base import peer_key
from router.events import ModelsAllowed, WorkerGone
from tests.fakes.router_bench import Bench


def two_models() -> Bench:
    bench = Bench("d1")
    bench.do(ModelsAllowed(frozenset(("test-model", "new"))))
    bench.join("d2", model="new")
    bench.took()
    return bench


def test_workers_of_both_join_once_that_is_allowed_and_not_before() -> None:
    with pytest.raises(Incompatible, match="others serve"):
        Bench("d1").join("d2", model="new")
    assert {worker.info.id for worker in two_models().core.view} == {"d1", "d2"}


def test_a_new_call_may_go_to_either_and_both_know_its_pages() -> None:
    bench = two_models()
    for key in range(40):
        id = bench.call(key + 1, max_tokens=1)
        target = bench.took()[-1][0]
        bench.token(target, id, 42)
        if target == "d2":
            return  # check_integrity, after each event, has looked at the pages that were expected there
    raise AssertionError("the new model got nothing")


def test_an_answer_that_began_goes_on_with_its_model_or_not_at_all() -> None:
    bench = Bench("d1")
    id = bench.call()
    bench.token("d1", id, 42)
    bench.do(ModelsAllowed(frozenset(("test-model", "new"))))
    bench.join("d2", model="new")
    bench.took()
    bench.do(WorkerGone(peer_key("d1", 1), "lost", True))
    bench.tick(5.0, awake=("d2",))
    assert not any(isinstance(command, Generate) for _, command in bench.took())
    bench.join("d3")
    ((name, command),) = [each for each in bench.took() if isinstance(each[1], Generate)]
    assert name == "d3" and isinstance(command, Generate) and list(command.request.tokens)[-1] == 42


def test_when_its_model_is_gone_for_good_the_error_says_so() -> None:
    bench = two_models()
    id = bench.call(max_tokens=9)
    while (target := bench.took()[-1][0]) != "d1":
        id = bench.call(len(bench.core.calls.flows) + 1, max_tokens=9)
    bench.token("d1", id, 42)
    bench.do(WorkerGone(peer_key("d1", 1), "lost", True))
    bench.tick(40.0, awake=("d2",))
    assert target == "d1"
    assert any("no worker is left of the model that began this answer" in str(error) for error in bench.failures)


def test_a_call_that_has_no_token_yet_may_begin_again_with_the_new_model() -> None:
    bench = Bench("d1")
    bench.call()
    bench.do(ModelsAllowed(frozenset(("test-model", "new"))))
    bench.join("d2", model="new")
    bench.took()
    bench.do(WorkerGone(peer_key("d1", 1), "lost", True))
    assert [name for name, command in bench.took() if isinstance(command, Generate)] == ["d2"]


def test_a_draining_worker_hands_nothing_to_the_other_model() -> None:
    bench = two_models()
    view = bench.core.view
    source, target = (view.find(name)[0] for name in ("d1", "d2"))
    view.on_peer_status(target, PeerStatus("d1", 1, False, message="different models: test-model here, new there"))
    assert not view.can_take_over(source, bench.now)
