import pytest

from engine.core.errors import Overloaded
from router.admission import Admission
from router.config import AdmissionConfig


def test_places_then_a_queue_then_a_refusal_with_a_hint() -> None:
    admission = Admission(AdmissionConfig(max_running=2, max_queued=1))
    assert admission.enter(1, 0, 1.0) and admission.enter(2, 0, 1.0)
    assert not admission.enter(3, 0, 1.0)
    with pytest.raises(Overloaded) as refusal:
        admission.enter(4, 0, 1.0)
    assert refusal.value.retry_after_s == pytest.approx(1.0)
    admission.check_integrity({1, 2, 3})


def test_the_queue_goes_by_priority_then_by_arrival() -> None:
    admission = Admission(AdmissionConfig(max_running=1, max_queued=9))
    admission.enter(1, 0, 1.0)
    for key, priority in ((2, 1), (3, 0), (4, 0), (5, -1)):
        admission.enter(key, priority, 1.0)
    order, key = [], 1
    while (following := admission.leave(key)) is not None:
        order.append(key := following)
    assert order == [5, 3, 4, 2]


def test_a_waiting_call_that_ends_gives_nobody_its_place() -> None:
    admission = Admission(AdmissionConfig(max_running=1, max_queued=9))
    for key in (1, 2, 3):
        admission.enter(key, 0, 1.0)
    assert admission.leave(2) is None
    admission.check_integrity({1, 3})
    assert admission.leave(1) == 3
    assert admission.leave(3) is None
    assert admission.num_running == admission.num_waiting == 0
