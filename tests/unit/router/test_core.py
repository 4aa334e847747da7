"""The router core event by event: what is sent where, and in what order."""

from array import array
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.core.errors import DeadlineExceeded, InvalidRequest, Unavailable
from engine.core.messages import (
    Adopt,
    Adopted,
    Cancel,
    Command,
    DeliverTicket,
    Finished,
    Generate,
    HandoffFailed,
    PagesCleared,
    PagesStored,
    PeerJoined,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, Grammar, GrammarKind, Sampling, TokenLogprob
from kv_transfer.transports.base import peer_key
from router.api import Delta, Timing
from router.events import (
    CallCancelled,
    WorkerDraining,
    WorkerGone,
)
from router.prompt import PromptPages, cache_salt
from tests.fakes.router_bench import PROMPT, Bench


def kinds(sent: list[tuple[str, Command]]) -> list[tuple[str, type[Command]]]:
    return [(worker, type(command)) for worker, command in sent]


def test_both_legs_start_at_once_and_share_one_request() -> None:
    bench = Bench("p", "d")
    bench.now = 2.0
    id = bench.call(timeout_s=30.0)
    (_, prefill), (_, adopt) = sent = bench.took()
    assert kinds(sent) == [("p", Prefill), ("d", Adopt)]
    assert isinstance(prefill, Prefill) and isinstance(adopt, Adopt) and prefill.request == adopt.request
    request = prefill.request
    assert request.id == id and list(request.tokens) == PROMPT and request.num_prompt == len(PROMPT)
    assert (request.arrival_s, request.deadline_s) == (2.0, 32.0)
    assert request.cache_salt == cache_salt("", b"")


def test_the_whole_path_of_one_request() -> None:
    bench = Bench("p", "d")
    id = bench.call(num_logprobs=0)
    bench.took()
    logprob = TokenLogprob(7, -0.5)
    bench.frame("p", started=[Started(id, 8, 0.25)], tickets=[TicketIssued(id, b"t1", False)])
    assert bench.took() == [("d", DeliverTicket(id, b"t1"))]
    bench.now = 1.0
    bench.token("p", id, 7, logprobs=[logprob], tickets=[TicketIssued(id, b"t2", True)])
    assert bench.took() == [("d", DeliverTicket(id, b"t2"))]
    known = Timing(admit_s=0.25, prefill_s=0.75, ttft_s=1.0, prefill_worker="p", decode_worker="d")
    first = Delta((7,), (logprob,), cached_tokens=8, timing=known)
    assert bench.deltas == [first], "before the pages have moved"
    bench.now = 1.5
    bench.frame("d", adopted=[Adopted(id, 1000, 0.1, 4, 1)], ids=[id], tokens=[8], logprobs=[None])
    assert bench.took() == [("p", Release(id))]
    bench.token("d", id, 9)
    bench.frame("d", ids=[id, id], tokens=[10, 11], finished=[Finished(id, FinishReason.LENGTH)])
    assert bench.tokens == [7, 8, 9, 10, 11] and len(bench.deltas) == 4
    last = bench.deltas[-1]
    assert last.finish_reason is FinishReason.LENGTH and last.timing
    assert (last.timing.queue_s, last.timing.admit_s, last.timing.prefill_s) == (0.0, 0.25, 0.75)
    assert (last.timing.ttft_s, last.timing.first_step_s) == (1.0, pytest.approx(0.4))
    assert (last.timing.transfer_s, last.timing.prefill_worker, last.timing.decode_worker) == (0.1, "p", "d")
    assert bench.took() == [] and not bench.core.calls.flows
    assert (bench.core.stats.handoffs, bench.core.stats.cached_tokens) == (1, 8)


def test_a_stop_token_that_comes_first_settles_both_legs() -> None:
    bench = Bench("p", "d")
    id = bench.call(stop_token_ids=(7,))
    bench.took()
    bench.token("p", id, 7, tickets=[TicketIssued(id, b"t", True)])
    assert bench.took() == [("p", Release(id)), ("d", Cancel(id))]
    assert [delta.finish_reason for delta in bench.deltas] == [FinishReason.STOP]
    assert bench.deltas[0].stop_token == 7 and bench.deltas[0].tokens == (7,)


def test_a_request_for_one_token_is_no_handoff() -> None:
    bench = Bench("p", "d")
    bench.call(max_tokens=1)
    assert kinds(bench.took()) == [("p", Generate)]


def test_a_prefill_worker_that_takes_its_pages_back_is_nobodys_fault_and_the_call_begins_again() -> None:
    bench = Bench("p", "d")
    first = bench.call()
    bench.took()
    bench.frame("p", handoff_failed=[HandoffFailed(first, "its pages were needed")])
    cancel, *again = bench.took()
    assert cancel == ("d", Cancel(first))
    assert [(worker, type(command)) for worker, command in again] == [("p", Prefill), ("d", Adopt)], "the same pair"
    assert bench.core.stats.retries == {"preempted": 1} and not bench.core.stats.handoff_failures


def test_a_failed_handoff_goes_on_elsewhere_with_what_was_emitted() -> None:
    bench = Bench("p", "d")
    first = bench.call()
    bench.token("p", first, 7, tickets=[TicketIssued(first, b"t", True)])
    bench.took()
    bench.frame("d", handoff_failed=[HandoffFailed(first, "generations changed")])
    cancel, (worker, generate) = bench.took()
    assert cancel == ("p", Cancel(first))
    assert worker == "d" and isinstance(generate, Generate), "not this pair again"
    request = generate.request
    assert list(request.tokens) == [*PROMPT, 7] and request.num_prompt == len(PROMPT) and request.id != first
    assert request.sampling == Sampling(max_tokens=5, seed=9)
    bench.token("d", first, 66)
    bench.token("p", first, 66)
    bench.frame("d", finished=[Finished(first, FinishReason.ERROR)])
    bench.token("d", request.id, 8, started=[Started(request.id, 20, 0.0)])
    bench.frame("d", ids=[request.id] * 3, tokens=[9, 10, 11], finished=[Finished(request.id, FinishReason.LENGTH)])
    assert bench.tokens == [7, 8, 9, 10, 11], "nothing of the first attempt after its end"
    assert bench.core.stats.retries == {"handoff": 1} and bench.core.stats.resumed == 1 and not bench.failures


def test_a_pair_that_is_lost_ends_at_once_what_is_on_its_way_over_it_and_nothing_else() -> None:
    """A call that waits for the prefill worker or for pages would find out only when it has them."""
    bench = Bench("p1", "p2", "d")
    adopted = bench.call(1)
    source = bench.took()[0][0]
    other = "p2" if source == "p1" else "p1"
    bench.token(source, adopted, 7)
    bench.frame("d", adopted=[Adopted(adopted, 10, 0.1, 1, 1)])
    waits = bench.call(2)
    assert bench.took()[0][0] == source, "where the prompt is"
    bench.frame("d", peers=[PeerStatus(other, 1, False, message="hung")])
    assert bench.took() == []
    bench.frame("d", peers=[PeerStatus(other, 1, True, "x", 1e9)])
    bench.frame("d", peers=[PeerStatus(source, 1, False, message="hung")])
    sent = bench.took()
    assert sent[:2] == [(source, Cancel(waits)), ("d", Cancel(waits))]
    assert kinds(sent[2:]) == [(other, Prefill), ("d", Adopt)]


def test_a_lost_pair_is_one_failure_and_used_again_as_soon_as_it_has_proven_itself() -> None:
    bench = Bench("p", "d")
    ids = [bench.call(key) for key in range(3)]
    failed = [HandoffFailed(id, "peer: hung", peer_lost=True) for id in ids]
    bench.frame("d", peers=[PeerStatus("p", 1, False, message="hung")], handoff_failed=failed)
    assert bench.core.stats.retries == {"pair_lost": 3}
    bench.frame("d", peers=[PeerStatus("p", 1, True, "x", 1e9)])
    bench.call(4)
    assert kinds(bench.took()) == [("p", Prefill), ("d", Adopt)]


def test_a_lost_prefill_worker_ends_the_decode_leg_and_another_pair_is_tried() -> None:
    bench = Bench("p1", "p2", "d")
    first = bench.call()
    (lost, _), _ = bench.took()
    other = "p2" if lost == "p1" else "p1"
    bench.do(WorkerGone(peer_key(lost, 1), "connection reset"))
    sent = bench.took()
    assert sent[0] == ("d", Cancel(first)) and kinds(sent[1:]) == [(other, Prefill), ("d", Adopt)]


def test_without_any_worker_a_call_waits_and_goes_as_soon_as_one_joins() -> None:
    bench = Bench()
    assert bench.call() == 0
    bench.tick(1.0)
    bench.join("d")
    assert ("d", Generate) in kinds(bench.took())


def test_a_call_that_nobody_can_take_fails_before_a_far_deadline() -> None:
    bench = Bench()
    bench.call(timeout_s=600.0)
    bench.tick(29.0)
    assert not bench.failures
    bench.tick(3.0)
    assert isinstance(bench.failures[0], Unavailable) and bench.failures[0].retry_after_s


def test_a_decode_worker_that_dies_after_the_last_token_cost_nothing() -> None:
    bench = Bench("p", "d")
    id = bench.call(max_tokens=2)
    bench.token("p", id, 7)
    bench.frame("d", adopted=[Adopted(id, 1, 0.0, 1, 0)], ids=[id], tokens=[8])
    bench.took()
    bench.do(WorkerGone(peer_key("d", 1), "killed"))
    assert bench.deltas[-1].finish_reason is FinishReason.LENGTH and bench.tokens == [7, 8]
    assert bench.took() == [] and not bench.core.stats.retries


def test_a_hung_worker_is_told_to_end_its_legs_and_gets_no_more() -> None:
    bench = Bench("p", "d1", "d2")
    id = bench.call()
    (_, _), (hung, _) = bench.took()
    other = "d2" if hung == "d1" else "d1"
    bench.tick(0.8, awake=("p", other))
    sent = bench.took()
    assert ("p", Cancel(id)) in sent and (hung, Cancel(id)) in sent
    assert kinds(sent)[-2:] == [("p", Prefill), (other, Adopt)]
    for key in range(2, 6):
        bench.call(key)
        assert hung not in dict(bench.took())
    bench.frame(hung)
    targets = set()
    for key in range(6, 40):
        bench.call(key)
        targets |= set(dict(bench.took()))
    assert hung in targets


@pytest.mark.parametrize("stage", ["prefilling", "handoff", "decoding"])
@pytest.mark.parametrize("end", ["client", "deadline", "worker's deadline"])
def test_every_early_end_settles_both_legs(stage: str, end: str) -> None:
    bench = Bench("p", "d")
    id = bench.call(timeout_s=1.0)
    if stage != "prefilling":
        bench.token("p", id, 7)
    if stage == "decoding":
        bench.frame("d", adopted=[Adopted(id, 1, 0.0, 1, 0)])
    bench.took()
    if end == "client":
        bench.do(CallCancelled(1))
    elif end == "deadline":
        bench.tick(1.05, awake=("p", "d"))
    else:
        bench.frame("d", finished=[Finished(id, FinishReason.DEADLINE)])
    open_legs = {"prefilling": {"p", "d"}, "handoff": {"p", "d"}, "decoding": {"d"}}[stage]
    told = {worker for worker, command in bench.took() if command == Cancel(id)}
    assert told == open_legs - ({"d"} if end == "worker's deadline" else set())
    assert [type(error) for error in bench.failures] == ([] if end == "client" else [DeadlineExceeded])
    assert not bench.core.calls.flows
    bench.do(CallCancelled(1))
    assert bench.took() == []


def test_a_deadline_that_has_passed_is_no_work_for_anybody() -> None:
    bench = Bench("p", "d")
    bench.call(timeout_s=0.0)
    assert bench.took() == [] and isinstance(bench.failures[0], DeadlineExceeded)


def test_errors_of_workers_are_tried_elsewhere_and_then_told() -> None:
    bench = Bench("d1", "d2", "d3", policy="cost")
    tried = []
    for _ in range(3):
        id = bench.last_id() or bench.call()
        tried.append(bench.took()[-1][0])
        bench.frame(tried[-1], finished=[Finished(id, FinishReason.ERROR, "no such page")])
        bench.tick(0.1, awake=("d1", "d2", "d3"))
    assert sorted(tried) == ["d1", "d2", "d3"]
    (error,) = bench.failures
    assert isinstance(error, Unavailable) and "no such page" in error.message


OUT_OF_TURN: list[Callable[[Bench, int], None]] = [
    lambda bench, id: bench.token("d", id, 8),
    lambda bench, id: bench.token("p", id, 8),
    lambda bench, id: bench.frame("p", adopted=[Adopted(id, 1, 0.0, 1, 0)]),
    lambda bench, id: bench.frame("d", finished=[Finished(id, FinishReason.STOP)]),
]


@pytest.mark.parametrize("lie", OUT_OF_TURN)
def test_what_comes_out_of_turn_is_a_failure_of_the_worker_and_never_a_token(lie: Callable[[Bench, int], None]) -> None:
    bench = Bench("p", "d")
    id = bench.call()
    bench.token("p", id, 7)
    bench.took()
    lie(bench, id)
    assert bench.tokens == [7] and bench.last_id() not in (0, id)
    assert sum(bench.core.stats.retries.values()) == 1


def test_prompt_logprobs_are_said_once_and_not_asked_for_again() -> None:
    bench = Bench("p", "d")
    id = bench.call(num_prompt_logprobs=0)
    values = [TokenLogprob(token, -1.0) for token in PROMPT[1:]]
    bench.frame("p", prompt_logprobs=[(id, values[:9])])
    bench.token("p", id, 7, prompt_logprobs=[(id, values[9:])])
    assert bench.deltas[0].prompt_logprobs == tuple(values)
    bench.took()
    bench.frame("d", handoff_failed=[HandoffFailed(id, "x")])
    _, (_, again) = bench.took()
    assert isinstance(again, Generate) and again.request.sampling.num_prompt_logprobs is None


def test_an_attempt_that_gave_no_token_leaves_no_trace_in_the_answer() -> None:
    bench = Bench("p", "d")
    id = bench.call(num_prompt_logprobs=0)
    bench.frame("p", started=[Started(id, 4, 0.0)], prompt_logprobs=[(id, [TokenLogprob(1, -1.0)])])
    bench.frame("d", handoff_failed=[HandoffFailed(id, "x")])
    again = bench.last_id()
    bench.token("d", again, 7, started=[Started(again, 0, 0.0)], prompt_logprobs=[(again, [TokenLogprob(1, -2.0)])])
    (delta,) = bench.deltas
    assert replace(delta, timing=None) == Delta((7,), (), (TokenLogprob(1, -2.0),), 0)


def test_the_same_prompt_meets_on_one_prefill_worker_before_anything_is_reported() -> None:
    bench = Bench("p1", "p2", "p3", "d", policy="cost")
    prompt = list(range(400))
    for key in range(1, 6):
        bench.call(key, prompt, max_tokens=100)
    flows = bench.core.calls.flows.values()
    assert len({flow.attempt.computes.worker.key for flow in flows if flow.attempt}) == 1


def test_a_reported_prefix_draws_a_call() -> None:
    bench = Bench("p1", "p2", "d")
    prompt = list(range(40))
    pages = PromptPages(array("i", prompt), cache_salt("", b""), "test-model").digests(4)
    bench.frame("p2", kv_seq=1, kv_events=[PagesCleared(), PagesStored(b"", tuple(pages))])
    for key in range(1, 4):
        bench.call(key, prompt)
        assert bench.took()[0][0] == "p2"


def test_workers_learn_of_each_other() -> None:
    bench = Bench("p", "d")
    bench.join("d2")
    told = [(worker, command.info.id) for worker, command in bench.took() if isinstance(command, PeerJoined)]
    assert sorted(told) == [("d", "d2"), ("d2", "d"), ("d2", "p")], "who takes over no pages need not know"


def test_peers_of_a_lost_worker_are_told_when_it_does_not_come_back() -> None:
    bench = Bench("p", "d")
    bench.do(WorkerGone(peer_key("p", 1), "reset"))
    assert bench.took() == []
    bench.tick(4.0, awake=("d",))
    assert bench.took() == []
    bench.tick(2.0, awake=("d",))
    assert bench.took() == [("d", PeerLeft("p", 1))]


def test_peers_of_a_dead_or_replaced_worker_are_told_at_once() -> None:
    bench = Bench("p", "d")
    bench.do(WorkerGone(peer_key("p", 1), "killed", dead=True))
    assert bench.took() == [("d", PeerLeft("p", 1))]
    bench.join("p", incarnation=2)
    bench.do(WorkerGone(peer_key("p", 2), "reset"))
    bench.took()
    bench.join("p", incarnation=3)
    assert bench.took()[0] == ("d", PeerLeft("p", 2))
    bench.join("p", incarnation=4)
    assert bench.took()[0] == ("d", PeerLeft("p", 3)), "also when the old session was not seen to end"
    assert [worker.info.incarnation for worker in bench.core.view.find("p")] == [4]


def test_a_worker_that_comes_back_as_it_was_is_introduced_again_and_nobody_forgets_it() -> None:
    bench = Bench("p", "d")
    bench.do(WorkerGone(peer_key("p", 1), "reset"))
    bench.join("p")
    sent = bench.took()
    assert PeerLeft not in [type(command) for _, command in sent]
    assert ("d", PeerJoined) in kinds(sent) and ("p", SendPrefixes()) in sent
    bench.call()
    assert kinds(bench.took()) == [("p", Prefill), ("d", Adopt)]


def test_a_gap_in_prefix_events_is_answered_by_a_question_with_the_next_tick() -> None:
    bench = Bench("d")
    bench.frame("d", kv_seq=1, kv_events=[PagesCleared()])
    bench.tick(2.0, awake=("d",))
    assert bench.took() == []
    bench.frame("d", kv_seq=3, kv_events=[PagesStored(b"", (b"x" * 16,))])
    bench.tick(0.05, awake=("d",))
    assert bench.took() == [("d", SendPrefixes())]


def test_a_draining_worker_keeps_what_it_has_and_gets_nothing_new() -> None:
    bench = Bench("d1", "d2")
    bench.call(1)
    busy = bench.took()[0][0]
    bench.do(WorkerDraining(peer_key(busy, 1)))
    assert bench.took() == []
    for key in range(2, 8):
        bench.call(key)
        assert bench.took()[0][0] != busy


def test_what_an_unknown_worker_says_is_nothing() -> None:
    bench = Bench("d")
    id = bench.call()
    bench.took()
    bench.token("x", id, 9)
    bench.frame("d", incarnation=2, ids=[id], tokens=[9])
    bench.do(WorkerGone(peer_key("x", 1), "?"))
    assert bench.took() == [] and bench.deltas == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_nobody_can_go_on_with_fails_at_once_and_blames_nobody(begun: bool) -> None:
    bench = Bench("p", "d")
    id = bench.call(grammar=Grammar(GrammarKind.REGEX, "a+"))
    if begun:
        bench.token("p", id, 7)
        bench.frame("d", adopted=[Adopted(id, 100, 0.1, 1, 0)])
    bench.took()
    bench.frame("d" if begun else "p", finished=[Finished(id, FinishReason.REFUSED, "its grammar: too large")])
    (error,) = bench.failures
    assert isinstance(error, InvalidRequest) and error.message == "its grammar: too large"
    assert bench.last_id() == 0, "it is not tried again"
    assert all(worker.breaker.allows(bench.now) and not worker.legs for worker in bench.core.view)
    assert bench.call(2), "the next one is sent"
