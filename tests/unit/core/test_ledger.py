"""Where pages are, for how long, and what is said when one is lost."""

from tests.fakes.core import CoreBench, make_request


def ages(bench: CoreBench, now: float) -> dict[str, tuple[int, float]]:
    lines = bench.core.load(now).pages_by_state
    assert sum(line.pages for line in lines) == 64
    return {line.state: (line.pages, line.oldest_s) for line in lines if line.pages}


def test_held_pages_grow_old_until_they_are_released() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(1, 11), max_tokens=5), hold=True)
    bench.run()
    assert ages(bench, 10.0) == {"free": (61, 0.0), "shared": (2, 0.0), "leased": (1, 0.0)}
    assert ages(bench, 12.5) == {"free": (61, 0.0), "shared": (2, 2.5), "leased": (1, 2.5)}
    bench.core.submit(make_request(2, range(30, 35), max_tokens=5), hold=True)
    bench.run()
    assert ages(bench, 13.0)["leased"] == (2, 3.0), "the oldest counts"
    bench.core.release(1)
    assert ages(bench, 14.0)["leased"] == (1, 1.0)
    bench.core.release(2)
    assert set(ages(bench, 15.0)) == {"free", "cached"}


def test_the_age_is_that_of_the_state() -> None:
    bench = CoreBench(page_size=4)
    bench.core.reserve(make_request(1, range(8), max_tokens=5))
    bench.run()
    ages(bench, 1.0)
    assert ages(bench, 3.0)["reserved"] == (2, 2.0)
    assert bench.core.fill(1)
    assert ages(bench, 4.0)["filling"] == (2, 0.0)
    bench.core.abort(1)
    assert ages(bench, 5.0)["quarantined"] == (2, 0.0)
    assert ages(bench, 9.0)["quarantined"] == (2, 4.0)
    assert not bench.core.is_empty
    bench.core.settle(1)
    assert bench.core.is_empty and not bench.core.page_fault()


def test_a_lost_page_and_a_lease_without_a_request_are_named() -> None:
    bench = CoreBench(page_size=4)
    bench.core.submit(make_request(1, range(10), max_tokens=5), hold=True)
    bench.run()
    assert bench.core.page_fault() == ""
    state = bench.core._states.pop(1)
    assert "no request is here and pages are held" in bench.core.page_fault()
    bench.core._states[1] = state
    bench.core.release(1)
    bench.core._kv._allocator._free.pop()
    assert "63 of 64 pages are accounted for" in bench.core.page_fault()
