import pytest

from engine.core.errors import Overloaded
from router.admission import Admission
from router.config import AdmissionConfig
from router.fair_queue import Share

ANY = Share()


def enter(admission: Admission, key: int, share: Share = ANY) -> bool:
    return admission.enter(key, share, 1.0).placed


def test_places_then_a_queue_then_a_refusal_with_a_hint() -> None:
    admission = Admission(AdmissionConfig(max_running=2, max_queued=1))
    assert enter(admission, 1) and enter(admission, 2)
    assert not enter(admission, 3)
    with pytest.raises(Overloaded) as refusal:
        enter(admission, 4)
    assert refusal.value.retry_after_s == pytest.approx(1.0)
    admission.check_integrity({1, 2, 3})


def test_the_queue_goes_by_priority_then_by_arrival() -> None:
    admission = Admission(AdmissionConfig(max_running=1, max_queued=9))
    enter(admission, 1)
    for key, priority in ((2, 1), (3, 0), (4, 0), (5, -1)):
        enter(admission, key, Share(priority=priority))
    order, key = [], 1
    for _ in range(4):
        assert admission.next() is None, "nobody has left"
        admission.leave(key)
        following = admission.next()
        assert following is not None
        order.append(key := following)
    assert order == [5, 3, 4, 2]


def test_a_waiting_call_that_ends_gives_nobody_its_place() -> None:
    admission = Admission(AdmissionConfig(max_running=1, max_queued=9))
    for key in (1, 2, 3):
        enter(admission, key)
    admission.leave(2)
    assert admission.next() is None
    admission.check_integrity({1, 3})
    admission.leave(1)
    assert admission.next() == 3
    admission.leave(3)
    assert admission.next() is None
    assert admission.num_running == admission.num_waiting == 0


def test_nobody_overtakes_who_waits_because_workers_have_enough_to_do() -> None:
    admission = Admission(AdmissionConfig(max_running=9, max_queued=9))
    assert not admission.enter(1, ANY, 1.0, room=False).placed
    assert not admission.enter(2, ANY, 1.0, room=True).placed
    assert (admission.next(), admission.next()) == (1, 2)


def test_a_full_queue_gives_up_the_last_call_of_the_tenant_that_fills_it() -> None:
    admission = Admission(AdmissionConfig(max_running=1, max_queued=4))
    enter(admission, 0)
    for key in (1, 2, 3, 4):
        enter(admission, key, Share("flood", priority=5 if key == 2 else 0))
    assert admission.enter(5, Share("other"), 1.0).evicted == 2
    admission.leave(2)
    assert admission.enter(6, Share("other"), 1.0).evicted == 4
    admission.leave(4)
    with pytest.raises(Overloaded):  # now both have as much
        enter(admission, 7, Share("other"))
    with pytest.raises(Overloaded):
        enter(admission, 7, Share("flood"))
    admission.check_integrity({0, 1, 3, 5, 6})
