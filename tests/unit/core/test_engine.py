"""Requests from arrival to their one end."""

import pytest

from engine.core.errors import InvalidRequest, Overloaded
from engine.core.messages import Finished
from engine.core.types import FinishReason, Grammar, GrammarKind
from tests.fakes.core import CoreBench, make_request
from tests.fakes.executor import VOCAB_SIZE, kv_of, logprob

ANY_TOKEN = tuple(range(1, VOCAB_SIZE))
"""But one, which is drawn while no stop token may be."""


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 15, 16, 17, 33])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_tokens_are_those_of_the_request_alone(num_tokens: int, max_in_flight: int) -> None:
    bench = CoreBench(page_size=4, max_step_tokens=8, max_in_flight=max_in_flight)
    request = make_request(1, range(num_tokens), max_tokens=11, seed=num_tokens)
    bench.core.submit(request)
    bench.run()
    assert bench.tokens[1] == bench.expected(request)
    assert bench.finished[1].reason is FinishReason.LENGTH
    assert set(bench.pages()) <= {"free", "cached"}


def test_a_stop_found_one_step_late_drops_what_was_drawn_after_it() -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, [1, 2, 3], max_tokens=20, min_tokens=2, stop_token_ids=ANY_TOKEN)
    bench.core.submit(request)
    while 1 not in bench.finished:
        bench.step()
    assert bench.finished[1].reason is FinishReason.STOP
    assert bench.finished[1].stop_token == bench.tokens[1][-1]
    assert bench.tokens[1] == bench.expected(request) and len(bench.tokens[1]) == 3
    assert bench.pages()["quarantined"] == 1, "the step in flight still writes there"
    bench.run()
    assert len(bench.tokens[1]) == 3
    assert bench.pages() == {"free": 63, "cached": 1}


def test_stop_tokens_count_only_after_min_tokens() -> None:
    bench = CoreBench()
    bench.core.submit(make_request(1, [1], max_tokens=9, stop_token_ids=ANY_TOKEN, min_tokens=0))
    bench.run()
    assert len(bench.tokens[1]) == 1 and bench.finished[1].reason is FinishReason.STOP


def test_a_resumed_attempt_counts_the_tokens_of_earlier_ones() -> None:
    bench = CoreBench()
    whole = make_request(1, [1, 2, 3], max_tokens=8)
    bench.core.submit(whole)
    bench.run()
    resumed = make_request(2, [1, 2, 3, *bench.tokens[1][:5]], num_prompt=3, max_tokens=8)
    bench.core.submit(resumed)
    bench.run()
    assert bench.tokens[2] == bench.tokens[1][5:]


def test_nothing_to_draw_ends_at_once() -> None:
    bench = CoreBench()
    bench.core.submit(make_request(1, [1, 2], max_tokens=0))
    bench.core.submit(make_request(2, [1, 2], num_prompt=1, max_tokens=1))
    bench.run()
    assert [bench.finished[id].reason for id in (1, 2)] == [FinishReason.LENGTH] * 2
    assert not bench.executor.plans


def test_the_model_length_ends_a_request() -> None:
    bench = CoreBench(max_model_len=10)
    bench.core.submit(make_request(1, range(7), max_tokens=100))
    bench.run()
    assert len(bench.tokens[1]) == 3 and bench.finished[1].reason is FinishReason.LENGTH


def test_a_request_that_fills_the_pool_alone_runs_to_its_last_slot() -> None:
    bench = CoreBench(page_size=2, num_pages=5)
    assert bench.core.max_model_len == 10
    request = make_request(1, range(6), max_tokens=100)
    bench.core.submit(request)
    bench.run()
    assert len(bench.tokens[1]) == 4 and bench.tokens[1] == bench.expected(request)


@pytest.mark.parametrize(
    ("tokens", "changes", "message"),
    [
        ([], {}, "empty"),
        ([1, 2], {"num_prompt": 0}, "empty"),
        (range(11), {}, r"11 tokens; this worker takes at most 10 .*model limit 1000, 5 pages of 2"),
    ],
)
def test_what_can_never_run_is_refused_with_the_reason(
    tokens: list[int], changes: dict[str, int], message: str
) -> None:
    bench = CoreBench(page_size=2, num_pages=5)
    with pytest.raises(InvalidRequest, match=message) as caught:
        bench.core.submit(make_request(1, tokens, **changes))
    assert caught.value.param == "prompt"
    assert not bench.core.has_work


def test_an_id_is_here_once() -> None:
    bench = CoreBench()
    bench.core.submit(make_request(1, [1]))
    with pytest.raises(InvalidRequest, match="here already"):
        bench.core.reserve(make_request(1, [2]))


def test_a_full_queue_refuses() -> None:
    bench = CoreBench(max_queued=2)
    bench.core.submit(make_request(1, [1]))
    bench.core.submit(make_request(2, [1]))
    with pytest.raises(Overloaded):
        bench.core.submit(make_request(3, [1]))
    bench.run()
    bench.core.submit(make_request(3, [1]))


# ------------------------------------------------------------ aborts and deadlines


@pytest.mark.parametrize("num_steps", range(8))
@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_an_abort_at_any_moment_frees_everything_and_disturbs_nobody(num_steps: int, max_in_flight: int) -> None:
    bench = CoreBench(page_size=2, num_pages=20, max_step_tokens=4, max_rows=2, max_in_flight=max_in_flight)
    requests = [make_request(id, [1, 2, 3, 4, 5, 6, id], max_tokens=6) for id in (1, 2, 3)]
    for request in requests:
        bench.core.submit(request)
    for _ in range(num_steps):
        bench.step()
    assert bench.core.abort(2)
    assert not bench.core.abort(2)
    bench.run()
    assert bench.finished[2].reason is FinishReason.CANCELLED
    for request in requests:
        got = bench.tokens[request.id]
        assert got == bench.expected(request)[: len(got)]
    assert len(bench.tokens[1]) == len(bench.tokens[3]) == 6
    assert set(bench.pages()) <= {"free", "cached"}


def test_deadlines_end_queued_and_running_requests() -> None:
    bench = CoreBench(max_rows=1)
    bench.core.submit(make_request(1, [1], max_tokens=500, deadline_s=10.0))
    bench.core.submit(make_request(2, [2], deadline_s=5.0))
    bench.core.submit(make_request(3, [3], max_tokens=2))
    assert bench.core.next_deadline_s() == 5.0
    bench.step(4.0)
    bench.step(5.0)
    assert bench.finished[2].reason is FinishReason.DEADLINE and 2 not in bench.started
    assert bench.core.next_deadline_s() == 10.0
    bench.step(10.0)
    assert bench.finished[1].reason is FinishReason.DEADLINE
    bench.run(11.0)
    assert len(bench.tokens[3]) == 2
    assert set(bench.pages()) <= {"free", "cached"}


def test_a_start_says_how_long_it_waited() -> None:
    bench = CoreBench()
    bench.core.submit(make_request(1, [1], arrival_s=3.0))
    bench.step(5.5)
    assert bench.started[1].queue_s == 2.5


def test_deadlines_of_requests_long_gone_take_no_memory() -> None:
    bench = CoreBench()
    for id in range(1000):
        bench.core.submit(make_request(id, [1], max_tokens=1))
        bench.run()
    assert len(bench.core._deadlines) < 200


# ------------------------------------------------------------ log probabilities


def test_log_probabilities_stand_beside_their_tokens() -> None:
    bench = CoreBench()
    with_, without = make_request(1, [1, 2], max_tokens=3, num_logprobs=0), make_request(2, [3], max_tokens=3)
    bench.core.submit(with_)
    bench.core.submit(without)
    bench.run()
    seen = [
        (id, result.tokens[row], result.logprobs[row])
        for result in bench.results
        if result.logprobs is not None
        for row, id in enumerate(result.ids)
    ]
    known = [1, 2]
    for id, token, value in seen:
        if id == 2:
            assert value is None
            continue
        assert value == logprob(kv_of(known), token)
        known.append(token)
    assert len(known) == 5


@pytest.mark.parametrize("num_tokens", [2, 9, 11, 12])
@pytest.mark.parametrize("num_pages", [64, 12])
def test_prompt_log_probabilities_come_once_each_and_from_no_cache(num_pages: int, num_tokens: int) -> None:
    bench = CoreBench(page_size=2, num_pages=num_pages, max_step_tokens=4)
    prompt = list(range(1, num_tokens + 1))
    bench.core.submit(make_request(1, prompt, max_tokens=10))
    for _ in range(4):
        bench.step()
    scored = make_request(2, prompt, max_tokens=0, num_prompt_logprobs=0, priority=1)
    bench.core.submit(scored)
    bench.run()
    entries = [entry for result in bench.results for id, some in result.prompt_logprobs if id == 2 for entry in some]
    assert entries == [logprob(kv_of(prompt[:at]), prompt[at]) for at in range(1, len(prompt))]
    assert bench.started[2].cached_tokens == 0
    assert bench.finished[2].reason is FinishReason.LENGTH and not bench.tokens[2]


def test_a_scored_prompt_draws_nothing_even_if_its_last_chunk_is_one_token() -> None:
    bench = CoreBench(page_size=4, max_step_tokens=4, max_rows=2)
    bench.core.submit(make_request(1, range(1, 6), max_tokens=0, num_prompt_logprobs=0))
    bench.run()
    assert [plan.num_new for plan in bench.executor.plans] == [[4], [1]]
    assert not bench.tokens[1] and bench.finished[1].reason is FinishReason.LENGTH


# ------------------------------------------------------------ what the shell asks


def test_an_idle_core_says_so_and_wakes_up() -> None:
    bench = CoreBench(page_size=2, num_pages=4)
    assert not bench.core.has_work and bench.core.next_deadline_s() is None
    bench.core.submit(make_request(1, range(5), max_tokens=5), hold=True)
    bench.run()
    bench.core.submit(make_request(2, range(10, 15), max_tokens=2))
    bench.run()
    assert not bench.core.has_work, "every page is held: only a release can help"
    bench.core.release(1)
    assert bench.core.has_work
    bench.run()
    assert len(bench.tokens[2]) == 2


def test_load_counts_what_waits_and_what_runs() -> None:
    bench = CoreBench(page_size=4, num_pages=32, max_rows=2, max_step_tokens=8, max_in_flight=1)
    for id in range(3):
        bench.core.submit(make_request(id, [id, *range(1, 12)], max_tokens=4))
    bench.step()
    load = bench.core.load(2.5)
    assert (load.seq, load.reported_s, load.num_pages) == (1, 2.5, 32)
    assert (load.queued_requests, load.running_rows, load.queued_tokens) == (2, 1, 4 + 24)
    assert load.queued_pairs == (12 * 12 - 8 * 8) // 2 + 2 * 12 * 12 // 2, "each with all before it"
    assert (
        load.free_pages == 32 - 4
        and {count.state: count.pages for count in load.pages_by_state} == bench.core.pages_by_state()
    )
    assert load.step_s == pytest.approx(0.008) and load.prefill_tokens_per_s == pytest.approx(1000)
    bench.run()
    assert bench.core.load(3.0).queued_tokens == 0


def test_the_prefix_cache_can_be_told_again_from_the_start() -> None:
    bench = CoreBench(page_size=2)
    bench.core.submit(make_request(1, range(7), max_tokens=1))
    bench.run()
    assert bench.core.drain_events() and not bench.core.drain_events()
    (stored,) = bench.core.stored_pages()
    assert stored.parent == b"" and len(stored.digests) == 3


ANY_TEXT = Grammar(GrammarKind.REGEX, ".*")


def test_where_a_grammar_ends_the_answer_ends_before_min_tokens_too() -> None:
    bench = CoreBench()
    every_token = (0, *ANY_TOKEN)
    bench.core.submit(make_request(1, [1], max_tokens=9, stop_token_ids=every_token, min_tokens=5, grammar=ANY_TEXT))
    bench.run()
    assert bench.finished[1].reason is FinishReason.STOP and len(bench.tokens[1]) == 1


@pytest.mark.parametrize("hold", [False, True])
def test_a_row_that_cannot_go_on_ends_with_the_reason_and_leaves_nothing(hold: bool) -> None:
    bench = CoreBench()
    bench.core.submit(make_request(1, [1, 2, 3], max_tokens=9, grammar=ANY_TEXT), hold=hold)
    bench.core.submit(make_request(2, [4, 5], max_tokens=9))
    bench.executor.refused = {1: "its grammar is too large"}
    bench.run()
    assert bench.finished[1] == Finished(1, FinishReason.REFUSED, "its grammar is too large")
    assert not bench.tokens[1] and len(bench.tokens[2]) == 9
    assert set(bench.pages()) <= {"free", "cached"}
