import pytest

from engine.core.errors import IllegalEvent
from kv_transfer.api import PeerReady, PeerRefused
from kv_transfer.peer import PEER_TABLE, Peer, PeerConfig, PeerEvent, PeerState, golden_bytes
from tests.fakes.handoffs import LAYOUT, WorkerInfo

INFO = WorkerInfo("p", 7, ("prefill",), "", "m", LAYOUT, 10, 100)


def peer(*transports: str) -> Peer:
    return Peer(INFO, transports or ("nixl", "grpc"), PeerConfig(first_pause_s=1, last_pause_s=4))


def prove(subject: Peer) -> PeerReady:
    for _ in range(3):
        subject.step_ok()
    return subject.timed(1e9)


def test_proof_over_the_preferred_transport() -> None:
    subject = peer()
    assert subject.proving
    assert prove(subject) == PeerReady("p", 7, "nixl", 1e9, "")
    assert subject.state is PeerState.READY and not subject.proving


@pytest.mark.parametrize("passed", range(4))
def test_any_failed_step_tries_the_next_transport_and_says_why(passed: int) -> None:
    subject = peer()
    for _ in range(passed):
        subject.step_ok()
    assert subject.fault("golden page differs", now=0) is None
    assert subject.state is PeerState.CONNECTING
    assert prove(subject) == PeerReady("p", 7, "grpc", 1e9, "nixl: golden page differs")


def test_no_transport_left_is_refused_with_every_reason_and_tried_again() -> None:
    subject = peer()
    subject.fault("a", now=10)
    assert subject.fault("b", now=10) == PeerRefused("p", 7, "nixl: a; grpc: b", permanent=False)
    assert subject.retry_s == 11
    subject.retry()
    assert (subject.transport, subject.state) == ("nixl", PeerState.CONNECTING)


def test_pauses_grow_to_a_limit_and_start_anew_after_success() -> None:
    subject = peer("grpc")
    pauses = []
    for _ in range(5):
        subject.fault("x", now=0)
        pauses.append(subject.retry_s)
        subject.retry()
    assert pauses == [1, 2, 4, 4, 4]
    prove(subject)
    subject.fault("lost", now=0)
    assert subject.retry_s == 1


def test_a_lost_peer_gets_a_new_link() -> None:
    subject = peer("grpc")
    prove(subject)
    old = subject.link
    subject.fault("lost", now=0)
    assert subject.link is not old


def test_a_proven_peer_is_judged_by_what_was_measured() -> None:
    config = PeerConfig(posted_s=0.05, min_posted_bytes=1000, slowdown=8, stall_grace_s=0.5)
    fast, slow = config.limits(200e9), config.limits(8000)
    assert (fast.max_posted_bytes, fast.max_read_bytes) == (10_000_000_000, 2_500_000_000)
    assert (slow.max_posted_bytes, slow.floor_bytes_per_s) == (1000, 1000)
    for limits in (PeerConfig().limits(rate) for rate in (9e6, 60e6, 0.6e9, 5e9, 200e9)):
        assert limits.stall_grace_s + limits.max_posted_bytes / limits.floor_bytes_per_s < 1.0


def test_only_the_first_proof_is_worth_waiting_for() -> None:
    subject = peer("grpc")
    assert not subject.judged
    subject.fault("x", now=0)
    subject.retry()
    assert subject.judged and subject.proving


def test_the_last_step_needs_a_measurement() -> None:
    subject = peer()
    with pytest.raises(IllegalEvent):
        subject.timed(1.0)
    for _ in range(3):
        subject.step_ok()
    with pytest.raises(IllegalEvent):
        subject.step_ok()


@pytest.mark.parametrize("state", PeerState)
@pytest.mark.parametrize("event", PeerEvent)
def test_the_table_is_the_only_way(state: PeerState, event: PeerEvent) -> None:
    subject = peer()
    subject.state = state
    target = PEER_TABLE[state].get(event)
    if target is None:
        with pytest.raises(IllegalEvent):
            subject._go(event)
    else:
        subject._go(event)
    assert subject.state is (target or state)


def test_golden_bytes_name_the_incarnation() -> None:
    assert len(golden_bytes("p@1", 1000)) == 1000
    assert golden_bytes("p@1", 1000) != golden_bytes("p@2", 1000)
    assert golden_bytes("p@1", 1000)[:10] == golden_bytes("p@1", 10)
