"""What the plans of a core look like, seen by its executor."""

import pytest

from engine.core.types import FinishReason, Grammar, GrammarKind, StepPlan
from tests.fakes.core import CoreBench, make_request


def chunks(plans: list[StepPlan], id: int) -> list[tuple[int, int]]:
    """(start, number of tokens) of each step of a row."""
    return [
        (plan.starts[row], plan.num_new[row]) for plan in plans for row, row_id in enumerate(plan.ids) if row_id == id
    ]


def computed(bench: CoreBench) -> int:
    return sum(plan.num_tokens for plan in bench.executor.plans)


def test_a_long_prompt_is_computed_in_chunks_that_end_between_pages() -> None:
    bench = CoreBench(page_size=4, max_step_tokens=10)
    bench.core.submit(make_request(1, range(1, 24), max_tokens=1))
    bench.run()
    assert chunks(bench.executor.plans, 1) == [(0, 8), (8, 8), (16, 7)]


def test_a_step_smaller_than_a_page_still_gets_on() -> None:
    bench = CoreBench(page_size=8, max_step_tokens=3, max_rows=2)
    request = make_request(1, range(1, 12), max_tokens=3)
    bench.core.submit(request)
    bench.run()
    assert chunks(bench.executor.plans, 1)[:4] == [(0, 3), (3, 3), (6, 2), (8, 3)]
    assert bench.tokens[1] == bench.expected(request)


def test_decode_rows_keep_their_pace_beside_a_long_prompt() -> None:
    bench = CoreBench(page_size=4, num_pages=200, max_step_tokens=10)
    bench.core.submit(make_request(1, [5], max_tokens=40))
    for _ in range(4):
        bench.step()
    bench.core.submit(make_request(2, range(1, 80), max_tokens=1))
    before = len(bench.executor.plans)
    while 2 not in bench.finished:
        bench.step()
    during = bench.executor.plans[before:]
    assert all(plan.ids[0] == 1 and plan.num_new[0] == 1 for plan in during), "a step without the decode row"
    assert all(plan.num_tokens <= 10 for plan in during)


def test_requests_join_and_leave_at_any_step() -> None:
    bench = CoreBench(max_rows=3)
    requests = [make_request(id, [id, 2, 3], max_tokens=3 + id) for id in range(6)]
    for request in requests:
        bench.core.submit(request)
        bench.step()
    bench.run()
    assert all(bench.tokens[request.id] == bench.expected(request) for request in requests)
    assert max(len(plan.ids) for plan in bench.executor.plans) == 3


def test_the_next_step_is_launched_while_one_runs_and_feeds_on_its_tokens() -> None:
    bench = CoreBench(max_in_flight=2)
    bench.core.submit(make_request(1, [1, 2, 3], max_tokens=4))
    assert bench.core.launch(0.0) and bench.core.launch(0.0) and not bench.core.launch(0.0)
    first, second = bench.executor.plans
    assert (first.feedback, first.samples) == ([False], [True])
    assert (second.starts, second.num_new, second.feedback) == ([3], [1], [True])
    bench.run()
    assert len(bench.tokens[1]) == 4
    assert len(bench.executor.plans) == 4, "length is known ahead: no step beyond it"


def test_one_step_at_a_time_uses_no_feedback() -> None:
    bench = CoreBench(max_in_flight=1)
    bench.core.submit(make_request(1, [1, 2, 3], max_tokens=4))
    bench.run()
    assert not any(feedback for plan in bench.executor.plans for feedback in plan.feedback)


def test_rows_are_shown_to_the_executor_once_and_forgotten() -> None:
    bench = CoreBench(page_size=2)
    bench.core.submit(make_request(1, [1, 2, 3], max_tokens=6))
    bench.run()
    bench.core.submit(make_request(2, [4], max_tokens=1))
    bench.run()
    plans = bench.executor.plans
    assert [[row.id for row in plan.added] for plan in plans if plan.added] == [[1], [2]]
    assert plans[-1].removed == [1]
    pages = [page for plan in plans for id, new in plan.new_pages if id == 1 for page in new]
    assert len(pages) == len(set(pages)) == 4, "8 positions are written: each page is named once"


def test_priority_then_arrival_decides_who_runs() -> None:
    bench = CoreBench(max_rows=1)
    for id, priority in ((1, 5), (2, 1), (3, 5), (4, 1)):
        bench.core.submit(make_request(id, [id], max_tokens=2, priority=priority))
    bench.run()
    assert list(bench.finished) == [2, 4, 1, 3]


# ------------------------------------------------------------ sharing


def test_a_finished_request_leaves_its_pages_to_the_next_turn() -> None:
    bench = CoreBench(page_size=4)
    first = make_request(1, range(1, 10), max_tokens=9)
    bench.core.submit(first)
    bench.run()
    turn = [*first.tokens, *bench.tokens[1], 7, 7]
    second = make_request(2, turn, max_tokens=3)
    bench.core.submit(second)
    bench.run()
    assert bench.started[1].cached_tokens == 0
    assert bench.started[2].cached_tokens == 16, "17 tokens have their KV, 4 pages of it are full"
    assert bench.tokens[2] == bench.expected(second)


def test_pages_of_a_prompt_are_shared_before_it_is_done() -> None:
    bench = CoreBench(page_size=4, max_step_tokens=8, max_in_flight=1)
    bench.core.submit(make_request(1, range(1, 40), max_tokens=1))
    bench.step()
    bench.core.submit(make_request(2, [*range(1, 9), 50, 51], max_tokens=1, priority=-1))
    bench.run()
    assert bench.started[2].cached_tokens == 8
    assert list(bench.finished) == [2, 1]


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_equal_prompts_at_once_are_computed_once(max_in_flight: int) -> None:
    bench = CoreBench(page_size=4, max_step_tokens=12, num_pages=200, max_in_flight=max_in_flight)
    requests = [make_request(id, range(1, 34), max_tokens=1, seed=id) for id in range(5)]
    for request in requests:
        bench.core.submit(request)
    bench.run()
    assert computed(bench) == 33 + 4, "32 tokens once, the last one by each"
    assert [bench.started[id].cached_tokens for id in range(5)] == [0, 32, 32, 32, 32]
    assert all(bench.tokens[request.id] == bench.expected(request) for request in requests)


def test_who_waited_for_a_shared_page_is_not_overtaken_by_a_long_prompt_that_came_later() -> None:
    bench = CoreBench(page_size=4, num_pages=200, max_step_tokens=8)
    shared = list(range(1, 25))
    bench.core.submit(make_request(1, shared, max_tokens=1))
    bench.step()
    bench.core.submit(make_request(2, [*shared, 40, 41], max_tokens=1))  # waits for the pages of the first
    bench.core.submit(make_request(3, range(100, 180), max_tokens=1))  # begins while it waits
    while 1 not in bench.finished:
        bench.step()
    while 2 not in bench.finished:
        bench.step()
    assert 3 not in bench.finished and len(chunks(bench.executor.plans, 3)) <= 3
    bench.run()


def test_work_that_waits_includes_launched_steps_until_they_are_done() -> None:
    bench = CoreBench(page_size=4, num_pages=200, max_step_tokens=8, max_in_flight=2)
    bench.core.submit(make_request(1, range(1, 25), max_tokens=4))
    assert bench.core.launch(0.0) and bench.core.launch(0.0)
    assert bench.core.load(0.0).queued_tokens == 24, "none of them is computed yet"
    bench.core.commit()
    assert bench.core.load(0.0).queued_tokens == 16
    bench.run()
    assert bench.core.load(0.0).queued_tokens == 0


def test_who_waits_for_an_aborted_request_goes_on_alone() -> None:
    bench = CoreBench(page_size=4, max_step_tokens=8)
    requests = [make_request(id, range(1, 34), max_tokens=2) for id in (1, 2, 3)]
    for request in requests:
        bench.core.submit(request)
    bench.step()
    assert bench.core.abort(1)
    bench.run()
    assert bench.finished[1].reason is FinishReason.CANCELLED
    assert bench.tokens[2] == bench.tokens[3] == bench.expected(requests[1])


def test_another_salt_shares_nothing() -> None:
    bench = CoreBench(page_size=4)
    for id, salt in ((1, b"a"), (2, b"b"), (3, b"a")):
        bench.core.submit(make_request(id, range(1, 10), max_tokens=1, cache_salt=salt))
        bench.run()
    assert [bench.started[id].cached_tokens for id in (1, 2, 3)] == [0, 0, 8]


# ------------------------------------------------------------ too few pages


def test_the_latest_loses_its_row_when_pages_run_out_and_gets_the_same_tokens() -> None:
    bench = CoreBench(page_size=2, num_pages=12, max_in_flight=2)
    requests = [make_request(id, [id, 1, 2], max_tokens=14) for id in (1, 2)]
    for request in requests:
        bench.core.submit(request)
    bench.run()
    added = [row.id for plan in bench.executor.plans for row in plan.added]
    assert added.count(1) == 1 and added.count(2) > 1, "the second was preempted, the first was not"
    assert all(bench.tokens[request.id] == bench.expected(request) for request in requests)
    assert list(bench.started) == [1, 2], "a start is reported once"


def test_computing_again_after_a_preemption_begins_at_what_is_cached() -> None:
    bench = CoreBench(page_size=2, num_pages=14, max_in_flight=1)
    for id in (1, 2):
        bench.core.submit(make_request(id, [id, 1, 2], max_tokens=16))
    bench.run()
    again = [plan for plan in bench.executor.plans for row in plan.added if row.id == 2][1]
    assert again.starts[again.ids.index(2)] > 0


def test_an_urgent_request_takes_the_place_of_a_lesser_one() -> None:
    bench = CoreBench(page_size=2, num_pages=8)
    lesser = make_request(1, [1, 2, 3], max_tokens=12, priority=3)
    bench.core.submit(lesser)
    for _ in range(4):
        bench.step()
    urgent = make_request(2, range(1, 14), max_tokens=2, priority=0)
    bench.core.submit(urgent)
    bench.run()
    assert list(bench.finished) == [2, 1]
    assert bench.tokens[1] == bench.expected(lesser) and bench.tokens[2] == bench.expected(urgent)


def test_an_urgent_request_takes_the_only_row() -> None:
    bench = CoreBench(max_rows=1)
    bench.core.submit(make_request(1, [1], max_tokens=30, priority=3))
    bench.step()
    bench.core.submit(make_request(2, [2], max_tokens=2, priority=0))
    bench.run()
    assert list(bench.finished) == [2, 1]


def test_a_token_that_was_being_drawn_when_the_row_was_lost_counts() -> None:
    bench = CoreBench(max_rows=1, max_in_flight=2)
    lesser = make_request(1, [1], max_tokens=9, priority=3)
    bench.core.submit(lesser)
    for _ in range(4):
        bench.step()
    bench.core.submit(make_request(2, [2], max_tokens=2, priority=0))
    bench.run()
    assert list(bench.finished) == [2, 1] and bench.tokens[1] == bench.expected(lesser)
    plans = [plan for plan in bench.executor.plans if 1 in plan.ids]
    assert sum(plan.samples[plan.ids.index(1)] for plan in plans) == 9, "no token is drawn twice"


def test_an_urgent_request_that_was_handed_over_takes_the_only_row() -> None:
    bench = CoreBench(max_rows=1)
    bench.core.submit(make_request(1, [1], max_tokens=30, priority=3))
    urgent = make_request(2, [2], max_tokens=4, priority=0)
    bench.core.reserve(urgent)
    bench.step()
    assert bench.core.adopt(2, bench.expected(urgent)[:1])
    bench.run()
    assert list(bench.finished) == [2, 1]
    assert bench.tokens[2] == bench.expected(urgent)[1:]


def test_nobody_is_preempted_by_an_equal() -> None:
    bench = CoreBench(max_rows=1)
    bench.core.submit(make_request(1, [1], max_tokens=30))
    bench.step()
    bench.core.submit(make_request(2, [2], max_tokens=2))
    bench.run()
    assert list(bench.finished) == [1, 2]


def test_nobody_is_preempted_in_vain() -> None:
    """All pages that the lesser one has are too few for the urgent one, for the rest is held."""
    bench = CoreBench(page_size=2, num_pages=10)
    bench.core.submit(make_request(1, range(20, 30), max_tokens=9), hold=True)
    bench.run()
    bench.core.submit(make_request(2, [2], max_tokens=4, priority=3))
    bench.step()
    bench.core.submit(make_request(3, range(1, 15), max_tokens=2, priority=0))
    bench.run()
    assert list(bench.finished) == [2]
    bench.core.release(1)
    bench.run()
    assert list(bench.finished) == [2, 3]


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    bench = CoreBench(page_size=2, num_pages=12)
    bench.core.submit(make_request(0, [9], max_tokens=8))
    bench.step()
    bench.core.submit(make_request(1, range(1, 22), max_tokens=2))
    for id in range(2, 8):
        bench.core.submit(make_request(id, [id], max_tokens=8))
    bench.run()
    assert list(bench.finished)[:2] == [0, 1]


FORM = Grammar(GrammarKind.REGEX, "a+")


def test_a_request_whose_grammar_is_being_compiled_holds_nobody_up() -> None:
    bench = CoreBench()
    bench.uncompiled.add(FORM)
    waits, other = make_request(1, [1, 2, 3], max_tokens=3, grammar=FORM), make_request(2, [4, 5], max_tokens=4)
    bench.core.submit(waits)
    bench.core.submit(other)
    bench.run()
    assert bench.tokens == {2: bench.expected(other)} and not bench.core.has_work
    bench.uncompiled.clear()
    bench.step()  # whoever compiled it has woken the loop
    bench.run()
    assert bench.tokens[1] == bench.expected(waits)


def test_nobody_asks_for_grammars_of_requests_that_could_not_run_yet() -> None:
    """Few are kept: one that is compiled too early is compiled again."""
    bench = CoreBench(max_rows=1)
    bench.core.submit(make_request(1, [1], max_tokens=20))
    bench.core.submit(make_request(2, [2], max_tokens=3, grammar=FORM))
    for _ in range(10):
        bench.step()
    assert not bench.asked
    bench.run()
    assert bench.asked and bench.finished.keys() == {1, 2}


def test_a_grammar_that_is_not_compiled_in_time() -> None:
    bench = CoreBench()
    bench.uncompiled.add(FORM)
    bench.core.submit(make_request(1, [1, 2, 3], max_tokens=3, grammar=FORM, deadline_s=5.0))
    bench.run()
    assert bench.core.next_deadline_s() == 5.0
    bench.step(now=5.0)
    assert bench.finished[1].reason is FinishReason.DEADLINE and bench.core.is_empty
