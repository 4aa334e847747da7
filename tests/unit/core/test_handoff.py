"""Both ends of a handoff, as the core sees them: pages that are held, and pages that come from elsewhere."""

import pytest

from engine.core.errors import IllegalEvent
from engine.core.types import FinishReason, Grammar, GrammarKind, Request
from tests.fakes.core import CoreBench, make_request
from tests.fakes.executor import VOCAB_SIZE, kv_of


def write_pages(bench: CoreBench, request: Request, first_page: int = 0) -> None:
    """What a transfer brings: the KV of the prompt from page `first_page` on."""
    size, slots = bench.config.page_size, kv_of(list(request.tokens))
    for index, page in enumerate(bench.reserved[request.id].pages[first_page:], first_page):
        data = slots[index * size : (index + 1) * size]
        bench.executor.memory[page][: len(data)] = data


def receive(bench: CoreBench, request: Request) -> None:
    """A whole handoff that goes well, up to and with the proof."""
    assert bench.core.fill(request.id)
    write_pages(bench, request, bench.reserved[request.id].num_local // bench.config.page_size)
    bench.core.settle(request.id)
    assert bench.core.prove(request.id, len(request.tokens))


# ------------------------------------------------------------ held pages


def test_pages_are_announced_as_they_become_final_and_the_last_with_the_first_token() -> None:
    bench = CoreBench(page_size=4, max_step_tokens=8, max_in_flight=1)
    request = make_request(1, range(1, 23), max_tokens=9)
    bench.core.submit(request, hold=True)
    bench.run()
    final = bench.final[1]
    assert [(part.start, part.end, part.last) for part in final] == [(0, 8, False), (8, 16, False), (16, 22, True)]
    slots = kv_of(list(request.tokens))
    stored = [slot for part in final for page in part.pages for slot in bench.executor.memory[page]]
    assert stored[:22] == slots
    assert all(part.generations == [bench.generations[page] for page in part.pages] for part in final)
    assert bench.tokens[1] == bench.expected(request)[:1]
    (last,) = [result for result in bench.results if any(part.last for part in result.final_pages)]
    assert last.ids == [1], "the token comes with the last pages"
    assert 1 not in bench.finished


def test_a_cached_prefix_is_announced_before_anything_is_computed() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 14), max_tokens=1))
    bench.run()
    bench.core.submit(make_request(2, range(1, 14), max_tokens=5), hold=True)
    assert bench.core.launch(0.0)
    bench.step()
    assert [(part.start, part.end, part.last) for part in bench.final[2]] == [(0, 12, False), (12, 13, True)]


def test_a_held_lease_ends_with_its_release_and_only_once() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), max_tokens=5), hold=True)
    assert not bench.core.release(1), "not held yet"
    bench.run()
    assert bench.pages() == {"free": 61, "shared": 2, "leased": 1}
    assert bench.core.release(1)
    assert not bench.core.release(1)
    assert bench.pages() == {"free": 62, "cached": 2}
    bench.core.submit(make_request(1, [1]))


def test_a_held_lease_runs_out_at_the_deadline() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), max_tokens=5, deadline_s=30.0), hold=True)
    bench.run(1.0)
    assert bench.core.next_deadline_s() == 30.0
    bench.step(30.0)
    assert bench.pages() == {"free": 62, "cached": 2} and not bench.finished


def test_an_abort_ends_a_held_lease() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), max_tokens=5), hold=True)
    bench.run()
    assert bench.core.abort(1)
    assert "leased" not in bench.pages() and not bench.finished


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_tokens": 1}, FinishReason.LENGTH),
        ({"max_tokens": 9, "stop_token_ids": tuple(range(VOCAB_SIZE))}, FinishReason.STOP),
    ],
)
def test_a_request_that_ends_with_its_first_token_holds_nothing(changes: dict[str, int], reason: FinishReason) -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), **changes), hold=True)
    bench.run()
    assert bench.finished[1].reason is reason and len(bench.tokens[1]) == 1
    assert not any(part.last for part in bench.final[1])
    assert "leased" not in bench.pages()


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_request_preempted_after_it_announced_pages_is_over_and_says_so(max_in_flight: int) -> None:
    bench = CoreBench(page_size=2, num_pages=8, max_step_tokens=4, max_in_flight=max_in_flight)
    bench.core.submit(make_request(1, range(1, 13), max_tokens=5, priority=3), hold=True)
    while not bench.final[1]:
        bench.step()
    urgent = make_request(2, range(20, 32), max_tokens=1, priority=0)
    bench.core.submit(urgent)
    bench.run()
    assert [id for result in bench.results for id in result.retracted] == [1]
    assert 1 not in bench.finished and not any(part.last for part in bench.final[1])
    assert bench.tokens[2] == bench.expected(urgent)
    assert "leased" not in bench.pages()


def test_a_request_that_loses_its_row_while_its_step_runs_announces_nothing() -> None:
    """A more urgent request takes its place while the step that completes its first page is in flight."""
    bench = CoreBench(page_size=8, num_pages=3, max_step_tokens=4)
    patient = make_request(1, range(1, 13), max_tokens=5, priority=3)
    bench.core.submit(patient, hold=True)
    bench.core.launch(0.0)
    bench.core.submit(make_request(2, range(20, 32), max_tokens=1, priority=0))
    while 2 not in bench.finished:
        bench.step()
        assert not bench.final[1], "pages of a request that waits for its turn"
    bench.run()
    assert not any(result.retracted for result in bench.results)
    assert bench.final[1][0].start == 0 and bench.final[1][-1].last
    assert bench.tokens[1] == bench.expected(patient)[:1]


# ------------------------------------------------------------ adopted pages


def test_an_adopted_request_goes_on_without_computing_its_prompt() -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, range(1, 11), max_tokens=6)
    bench.core.reserve(request)
    bench.step()
    reserved = bench.reserved[1]
    assert (reserved.num_local, reserved.num_tokens, len(reserved.pages)) == (0, 10, 3)
    assert bench.pages()["reserved"] == 3
    receive(bench, request)
    first, *rest = bench.expected(request)
    assert bench.core.adopt(1, [first])
    bench.run()
    assert bench.tokens[1] == rest
    assert sum(plan.num_tokens for plan in bench.executor.plans) == len(rest)
    assert 1 not in bench.started, "the leg that computed the prompt reports the start"
    assert bench.finished[1].reason is FinishReason.LENGTH


def test_only_pages_that_are_not_here_are_pulled() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), max_tokens=1))
    bench.run()
    request = make_request(2, [*range(1, 9), 30, 31, 32, 33], max_tokens=3)
    bench.core.reserve(request)
    bench.step()
    assert bench.reserved[2].num_local == 8
    receive(bench, request)
    first, *rest = bench.expected(request)
    bench.core.adopt(2, [first])
    bench.run()
    assert bench.tokens[2] == rest


def test_pages_that_are_all_here_need_no_transfer() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 10), max_tokens=1))
    bench.run()
    request = make_request(2, range(1, 9), max_tokens=3)
    bench.core.reserve(request)
    bench.step()
    assert bench.reserved[2].num_local == bench.reserved[2].num_tokens == 8
    first, *rest = bench.expected(request)
    bench.core.adopt(2, [first])
    bench.run()
    assert bench.tokens[2] == rest


def test_equal_handoffs_pull_their_pages_once() -> None:
    bench = CoreBench(page_size=4)
    requests = [make_request(id, range(1, 11), max_tokens=4, seed=id) for id in (1, 2)]
    for request in requests:
        bench.core.reserve(request)
    bench.run()
    assert list(bench.reserved) == [1], "the second waits for the pages of the first"
    receive(bench, requests[0])
    bench.run()
    assert bench.reserved[2].num_local == 8
    receive(bench, requests[1])
    for request in requests:
        bench.core.adopt(request.id, bench.expected(request)[:1])
    bench.run()
    assert all(bench.tokens[request.id] == bench.expected(request)[1:] for request in requests)


@pytest.mark.parametrize("first_token_came", [True, False])
@pytest.mark.parametrize("num_proven", [0, 4, 8])
def test_what_did_not_come_is_computed(num_proven: int, first_token_came: bool) -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, range(1, 11), max_tokens=4)
    bench.core.reserve(request)
    bench.step()
    assert bench.core.fill(1)
    write_pages(bench, request)
    bench.core.settle(1)
    if num_proven:
        assert bench.core.prove(1, num_proven)
    emitted = bench.expected(request)[:1] if first_token_came else []
    assert bench.core.adopt(1, emitted)
    bench.run()
    assert emitted + bench.tokens[1] == bench.expected(request)
    assert bench.executor.plans[0].starts == [num_proven]


def test_everything_proven_but_no_first_token_draws_it_here() -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, range(1, 9), max_tokens=4)
    bench.core.reserve(request)
    bench.step()
    receive(bench, request)
    assert bench.core.adopt(1, [])
    bench.run()
    assert bench.tokens[1] == bench.expected(request)


def test_giving_up_with_reads_in_flight_quarantines_their_pages_and_computes_elsewhere() -> None:
    bench = CoreBench(page_size=4, num_pages=8)
    request = make_request(1, range(1, 11), max_tokens=4)
    bench.core.reserve(request)
    bench.step()
    reserved = bench.reserved[1].pages
    assert bench.core.fill(1) and bench.core.fill(1)
    assert bench.core.adopt(1, [])
    assert bench.pages()["quarantined"] == 3
    for page in reserved:
        bench.executor.memory[page][:] = [-1] * 4  # bytes that arrive late
    bench.run()
    assert bench.tokens[1] == bench.expected(request)
    bench.core.settle(1)
    assert bench.pages()["quarantined"] == 3
    bench.core.settle(1)
    assert "quarantined" not in bench.pages()
    with pytest.raises(IllegalEvent):
        bench.core.settle(1)


@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_a_request_that_ends_while_pages_arrive_leaves_them_in_quarantine(how: str) -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, range(1, 11), max_tokens=4, deadline_s=9.0)
    bench.core.reserve(request)
    bench.step()
    assert bench.core.fill(1)
    if how == "abort":
        assert bench.core.abort(1)
    bench.step(9.0)
    assert bench.finished[1].reason is (FinishReason.CANCELLED if how == "abort" else FinishReason.DEADLINE)
    assert not bench.core.fill(1) and not bench.core.prove(1, 10) and not bench.core.adopt(1, [1])
    assert bench.pages() == {"free": 61, "quarantined": 3}
    with pytest.raises(Exception, match="here already"):
        bench.core.reserve(make_request(1, [1]))
    bench.core.narrow(1, bench.reserved[1].pages[:1])
    assert bench.pages() == {"free": 63, "quarantined": 1}
    bench.core.settle(1)
    with pytest.raises(IllegalEvent):
        bench.core.narrow(1, ())
    assert bench.pages() == {"free": 64}
    assert not bench.core.abort(1)


def test_a_reservation_without_a_transfer_is_free_at_once() -> None:
    bench = CoreBench(page_size=4)
    bench.core.reserve(make_request(1, range(1, 11), max_tokens=4))
    bench.step()
    assert bench.core.abort(1)
    assert bench.pages() == {"free": 64}


def test_a_reservation_waits_for_pages_in_turn() -> None:
    bench = CoreBench(page_size=4, num_pages=4)
    bench.core.submit(make_request(1, range(1, 9), max_tokens=5))
    bench.step()
    bench.core.reserve(make_request(2, range(20, 31), max_tokens=4))
    bench.step()
    assert 2 not in bench.reserved
    bench.run()
    assert 1 in bench.finished and len(bench.reserved[2].pages) == 3


def test_an_adopted_request_that_cannot_grow_is_not_shown_to_the_executor() -> None:
    bench = CoreBench(page_size=2, num_pages=5)
    bench.core.submit(make_request(1, range(20, 25), max_tokens=5), hold=True)
    bench.run()
    request = make_request(2, range(1, 5), max_tokens=3)
    bench.core.reserve(request)
    bench.step()
    receive(bench, request)
    assert bench.core.adopt(2, bench.expected(request)[:1])
    bench.run()
    assert not bench.tokens[2] and all(row.id != 2 for plan in bench.executor.plans for row in plan.added)
    bench.core.release(1)
    bench.run()
    assert bench.tokens[2] == bench.expected(request)[1:]


@pytest.mark.parametrize("num_tokens", [3, 11])
def test_proof_only_grows_and_ends_with_the_prompt(num_tokens: int) -> None:
    bench = CoreBench(page_size=4)
    bench.core.reserve(make_request(1, range(1, 11), max_tokens=4))
    bench.step()
    assert bench.core.prove(1, 8)
    with pytest.raises(IllegalEvent, match="proven after 8"):
        bench.core.prove(1, num_tokens)
    bench.core.check_integrity()


def test_pages_proven_early_are_shared_at_once() -> None:
    bench = CoreBench(page_size=4)
    request = make_request(1, range(1, 11), max_tokens=4)
    bench.core.reserve(request)
    bench.step()
    write_pages(bench, request)
    assert bench.core.prove(1, 8)
    other = make_request(2, range(1, 12), max_tokens=3)
    bench.core.submit(other)
    bench.run()
    assert bench.started[2].cached_tokens == 8 and bench.tokens[2] == bench.expected(other)


def test_pages_come_while_the_grammar_is_compiled() -> None:
    bench, form = CoreBench(), Grammar(GrammarKind.REGEX, "a+")
    bench.uncompiled.add(form)
    request, other = make_request(1, range(1, 11), max_tokens=5, grammar=form), make_request(2, [3], max_tokens=9)
    bench.core.reserve(request)
    bench.step()
    receive(bench, request)
    bench.core.adopt(1, bench.expected(request)[:1])
    bench.core.submit(other)
    bench.run()
    assert bench.tokens == {2: bench.expected(other)}
    bench.uncompiled.clear()
    bench.step()
    bench.run()
    assert bench.tokens[1] == bench.expected(request)[1:]
