"""Words reach the router that submitted the request, and nobody else."""

from engine.core.messages import (
    Adopted,
    Finished,
    Frame,
    HandoffFailed,
    PagesCleared,
    PagesRemoved,
    PeerStatus,
    Started,
)
from engine.core.result import StepResult
from engine.core.types import FinishReason, TokenLogprob, WorkerLoad
from engine.server.role import Ended
from engine.server.sessions import Sessions

A, B = 1, 2


def two_sessions() -> Sessions:
    sessions = Sessions()
    sessions.open(A)
    sessions.open(B)
    assert sessions.bind(10, A)
    assert sessions.bind(20, B)
    return sessions


def frames(sessions: Sessions) -> dict[int, Frame]:
    return dict(sessions.take())


def test_rows_are_split_by_owner() -> None:
    sessions = two_sessions()
    sessions.bind(11, A)
    sessions.add_rows(StepResult(step_id=5, ids=[10, 20, 11, 99], tokens=[1, 2, 3, 4]))
    assert frames(sessions) == {
        A: Frame(step_id=5, ids=[10, 11], tokens=[1, 3]),
        B: Frame(step_id=5, ids=[20], tokens=[2]),
    }


def test_logprobs_stay_parallel_to_rows_over_several_steps() -> None:
    sessions = two_sessions()
    value = TokenLogprob(3, -0.5)
    sessions.add_rows(StepResult(step_id=1, ids=[10, 20], tokens=[1, 2]))
    sessions.add_rows(StepResult(step_id=2, ids=[10, 20], tokens=[3, 4], logprobs=[value, None]))
    sessions.add_rows(StepResult(step_id=3, ids=[10], tokens=[5], prompt_logprobs=[(20, [value])]))
    by_session = frames(sessions)
    assert (by_session[A].ids, by_session[A].tokens, by_session[A].logprobs) == (
        [10, 10, 10],
        [1, 3, 5],
        [None, value, None],
    )
    assert (by_session[B].tokens, by_session[B].prompt_logprobs) == ([2, 4], [(20, [value])])


def test_one_router_gets_the_rows_as_they_are() -> None:
    sessions = Sessions()
    sessions.open(A)
    result = StepResult(step_id=7, ids=[1, 2], tokens=[3, 4], logprobs=[None, None])
    sessions.add_rows(result)
    frame = frames(sessions)[A]
    assert frame.ids is result.ids
    assert frame.step_id == 7


def test_the_last_word_ends_the_ownership() -> None:
    sessions = two_sessions()
    sessions.add(Started(10, 0, 0.1))
    sessions.add(Finished(10, FinishReason.STOP))
    sessions.add(Finished(10, FinishReason.CANCELLED))
    sessions.add(Adopted(20, 1, 1.0, 1, 1))
    sessions.add(HandoffFailed(20, "why"))
    sessions.add(Started(20, 0, 0.0))
    by_session = frames(sessions)
    assert [finished.reason for finished in by_session[A].finished] == [FinishReason.STOP]
    assert by_session[B].handoff_failed == [HandoffFailed(20, "why")]
    assert by_session[B].started == []
    assert sessions.close(A) == []
    assert sessions.bind(10, B)  # free again


def test_ended_is_not_said_but_ends_the_ownership() -> None:
    sessions = two_sessions()
    sessions.add(Ended(10, "released"))
    assert A not in frames(sessions)
    assert sessions.close(A) == []


def test_an_id_belongs_to_one_session_only() -> None:
    sessions = two_sessions()
    assert not sessions.bind(10, B)
    assert not sessions.may_touch(10, B)
    assert sessions.may_touch(10, A)
    assert sessions.may_touch(77, B)  # nobody's: harmless
    assert not sessions.bind(30, key=3)  # no such session


def test_a_lost_router_leaves_its_requests_to_be_cancelled() -> None:
    sessions = two_sessions()
    sessions.bind(11, A)
    sessions.add(Started(10, 0, 0.0))
    assert sorted(sessions.close(A)) == [10, 11]
    assert sessions.close(A) == []
    sessions.add(Finished(10, FinishReason.CANCELLED))
    assert frames(sessions) == {}


def test_load_goes_to_all_and_events_to_those_that_asked_once() -> None:
    sessions = two_sessions()
    load = WorkerLoad(1, 0.0, 0, 0, 0, 4, 4, 0.0, 0.0)
    sessions.add_events([PagesRemoved((b"w",))])
    assert frames(sessions) == {}, "nobody asked"
    sessions.add_snapshot(A, [])
    sessions.add_snapshot(B, [])
    assert frames(sessions) == {}
    sessions.add_events([PagesRemoved((b"x",))])
    sessions.add_load(load)
    for frame in frames(sessions).values():
        assert frame == Frame(kv_events=[PagesRemoved((b"x",))], kv_seq=2, load=load)
    sessions.add_events([])
    assert frames(sessions) == {}
    sessions.add_events([PagesRemoved((b"y",))])
    sessions.add_snapshot(B, [PagesCleared()])
    by_session = frames(sessions)
    assert (by_session[A].kv_seq, len(by_session[A].kv_events)) == (3, 1)
    assert (by_session[B].kv_seq, by_session[B].kv_events[-1]) == (3, PagesCleared())


def test_a_router_that_joins_late_hears_of_peers() -> None:
    sessions = two_sessions()
    gone, ready = PeerStatus("p0", 1, False, message="too slow"), PeerStatus("p1", 2, True, "grpc", 1e9)
    sessions.add_peer(gone)
    sessions.add_peer(ready)
    assert frames(sessions)[A].peers == [gone, ready]
    sessions.forget_peer("p0", 1)
    sessions.open(3)
    assert frames(sessions) == {3: Frame(peers=[ready])}
