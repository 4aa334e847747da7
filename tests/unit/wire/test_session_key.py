"""Both sides show that they know the key; what one hears is of no use at another worker, or after a restart."""

import pytest

from engine.core.errors import Unauthenticated
from engine.wire.session_key import ANSWER, CHALLENGE, RouterSide, Sent, WorkerSide

KEY, OTHER = b"the key of this cluster", b"the key of another one"


def answers(router: RouterSide, worker: WorkerSide) -> Sent:
    return router.reply(worker.greeting(router.hello()))


def test_who_knows_the_key_is_heard() -> None:
    router, worker = RouterSide(KEY), WorkerSide(KEY)
    assert not worker.knows(router.hello())
    assert worker.knows(answers(router, worker))


@pytest.mark.parametrize("worker", [WorkerSide(OTHER), WorkerSide(b"")], ids=["another key", "none"])
def test_a_worker_that_does_not_know_it_hears_nothing_but_a_number(worker: WorkerSide) -> None:
    router = RouterSide(KEY)
    assert [name for name, _ in router.hello()] == [CHALLENGE]
    with pytest.raises(Unauthenticated, match="same cluster key"):
        answers(router, worker)


@pytest.mark.parametrize(
    "greeting", [(), ((CHALLENGE, "00"),), ((CHALLENGE, "00"), (ANSWER, "00")), ((ANSWER, b"\xff"),)]
)
def test_a_greeting_that_is_none(greeting: tuple[tuple[str, str | bytes], ...]) -> None:
    with pytest.raises(Unauthenticated):
        RouterSide(KEY).reply(greeting)


def test_an_answer_is_for_one_start_of_one_worker() -> None:
    worker = WorkerSide(KEY)
    heard = answers(RouterSide(KEY), worker)
    assert worker.knows(heard), "each call brings it"
    assert not WorkerSide(KEY).knows(heard)


def test_a_router_s_own_words_are_no_answer() -> None:
    """Neither a recorded greeting nor a reflected one gets past the other side."""
    worker, router = WorkerSide(KEY), RouterSide(KEY)
    recorded = worker.greeting(router.hello())
    with pytest.raises(Unauthenticated):
        RouterSide(KEY).reply(recorded)
    assert not worker.knows(recorded)
    assert not worker.knows(WorkerSide(KEY).greeting(recorded))


@pytest.mark.parametrize(
    "given", [(), ((ANSWER, ""),), ((ANSWER, "x" * 100_000),), ((ANSWER, b"\xff"),), ((ANSWER, "é"),)]
)
def test_anything_else_is_refused(given: tuple[tuple[str, str | bytes], ...]) -> None:
    assert not WorkerSide(KEY).knows(given)
