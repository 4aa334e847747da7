from router.calls import Timers


def test_each_call_is_due_once_at_the_last_time_that_was_set() -> None:
    timers = Timers()
    for key, due_s in ((1, 5.0), (2, 3.0), (3, 4.0), (1, 1.0), (2, 9.0)):
        timers.set(key, due_s)
    timers.clear(3)
    assert list(timers.pop_due(5.0)) == [1]
    assert list(timers.pop_due(5.0)) == []
    assert list(timers.pop_due(9.0)) == [2]


def test_what_is_set_while_handing_out_counts() -> None:
    timers = Timers()
    timers.set(1, 1.0)
    seen = []
    for key in timers.pop_due(2.0):
        seen.append(key)
        if key < 3:
            timers.set(key + 1, 2.0)
    assert seen == [1, 2, 3]


def test_memory_follows_the_live_calls() -> None:
    timers = Timers()
    for key in range(100_000):
        timers.set(key, float(key))
        timers.clear(key)
    assert len(timers) == 0 and len(timers._heap) < 200
