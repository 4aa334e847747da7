from router.breaker import Breaker, BreakerState
from router.config import HealthConfig

CONFIG = HealthConfig(breaker_failures=2, breaker_open_s=1.0, breaker_max_open_s=4.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(CONFIG)
    breaker.on_failure(now)
    assert breaker.allows(now)
    breaker.on_failure(now)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    assert not opened().allows(0.9)
    breaker = Breaker(CONFIG)
    for _ in range(5):
        breaker.on_failure(0.0)
        breaker.on_success()
    assert breaker.state is BreakerState.CLOSED


def test_one_probe_is_let_through_and_its_success_closes() -> None:
    breaker = opened()
    assert breaker.allows(1.0)
    breaker.on_use(1.0)
    assert breaker.state is BreakerState.HALF_OPEN and not breaker.allows(1.5)
    breaker.on_success()
    assert breaker.state is BreakerState.CLOSED and breaker.allows(1.5)


def test_failed_probes_double_the_wait_up_to_a_limit() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(4):
        start = now
        while not breaker.allows(now):
            now += 0.5
        waits.append(now - start)
        breaker.on_use(now)
        breaker.on_failure(now)
    assert waits == [1.0, 2.0, 4.0, 4.0]


def test_a_probe_without_an_outcome_does_not_block_for_ever() -> None:
    breaker = opened()
    breaker.on_use(1.0)
    assert breaker.allows(2.0)


def test_outcomes_of_work_begun_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.on_success()
    for _ in range(10):
        breaker.on_failure(0.5)
    assert breaker.state is BreakerState.OPEN and breaker.allows(1.0)
