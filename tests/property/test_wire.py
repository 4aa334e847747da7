"""Whatever the core can say arrives unchanged: every command and frame survives bytes on the wire."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from engine.core.messages import (
    Adopt,
    Adopted,
    Cancel,
    Command,
    DeliverTicket,
    Drain,
    Finished,
    Frame,
    Generate,
    HandoffFailed,
    PagesCleared,
    PagesRemoved,
    PagesStored,
    PeerJoined,
    PeerLeft,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
    Started,
    TicketIssued,
)
from engine.core.types import (
    FinishReason,
    Grammar,
    GrammarKind,
    KVLayout,
    PageCount,
    Request,
    Sampling,
    TokenLogprob,
    WorkerInfo,
    WorkerLoad,
)
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_from_proto, command_to_proto
from engine.wire.frames import frame_from_proto, frame_to_proto

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
token = st.integers(0, 2**31 - 1)
number = st.floats(allow_nan=False)
float32 = st.floats(width=32, allow_nan=False)
pairs32 = st.lists(st.tuples(token, float32), max_size=4).map(tuple)

samplings = st.builds(
    Sampling,
    max_tokens=u32,
    min_tokens=u32,
    temperature=number,
    top_p=number,
    top_k=u32,
    min_p=number,
    repetition_penalty=number,
    presence_penalty=number,
    frequency_penalty=number,
    logit_bias=st.lists(st.tuples(token, number), max_size=3).map(tuple),
    seed=u64,
    stop_token_ids=st.lists(token, max_size=3).map(tuple),
    num_logprobs=st.none() | u32,
    num_prompt_logprobs=st.none() | u32,
    grammar=st.none() | st.builds(Grammar, st.sampled_from(GrammarKind), st.text(max_size=20)),
)
requests = st.builds(
    Request,
    id=u64,
    tokens=st.lists(token, max_size=40).map(lambda tokens: array("i", tokens)),
    num_prompt=u32,
    sampling=samplings,
    # Whole milliseconds on clocks that read 0, so that nothing is rounded.
    arrival_s=st.just(0.0),
    deadline_s=st.integers(-(10**6), 10**9).map(lambda ms: ms / 1000),
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_salt=st.binary(max_size=32),
    request_id=st.text(max_size=20),
)
names = st.text(max_size=10)
infos = st.builds(
    WorkerInfo,
    id=names,
    incarnation=u64,
    roles=st.lists(names, max_size=2).map(tuple),
    address=names,
    model=names,
    layout=st.builds(
        KVLayout,
        model_hash=names,
        num_layers=u32,
        num_kv_heads=u32,
        head_dim=u32,
        page_size=u32,
        dtype=names,
        tp_size=u32,
        order=names,
        version=u32,
    ),
    num_pages=u32,
    max_model_len=u32,
    transports=st.lists(st.tuples(names, st.binary(max_size=20)), max_size=2).map(tuple),
    topology=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    version=names,
)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Generate, requests),
    st.builds(Prefill, requests),
    st.builds(Adopt, requests),
    st.builds(DeliverTicket, u64, st.binary(max_size=50)),
    st.builds(Cancel, u64),
    st.builds(Release, u64),
    st.builds(PeerJoined, infos),
    st.builds(PeerLeft, names, u64),
    st.just(SendPrefixes()),
    st.builds(Drain, number),
)

logprobs = st.builds(TokenLogprob, token=token, logprob=float32, top=pairs32)
digests = st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple)
loads = st.builds(
    WorkerLoad,
    seq=u64,
    reported_s=number,
    queued_requests=u32,
    queued_tokens=u32,
    running_rows=u32,
    free_pages=u32,
    num_pages=u32,
    step_s=number,
    prefill_tokens_per_s=number,
    pages_by_state=st.lists(st.builds(PageCount, names, u32, number), max_size=3).map(tuple),
    num_preempted=u32,
    draining=st.booleans(),
    num_page_faults=u32,
    queued_pairs=u64,
    view_digest=st.none() | u64,
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    num_rows = draw(st.integers(0, 5))
    rows = {"min_size": num_rows, "max_size": num_rows}
    return Frame(
        step_id=draw(u64),
        ids=draw(st.lists(u64, **rows)),
        tokens=draw(st.lists(token, **rows)),
        logprobs=draw(st.none() | st.lists(st.none() | logprobs, **rows)) if num_rows else None,
        prompt_logprobs=draw(st.lists(st.tuples(u64, st.lists(logprobs, max_size=3)), max_size=2)),
        started=draw(st.lists(st.builds(Started, u64, u32, number), max_size=2)),
        finished=draw(
            st.lists(
                st.builds(Finished, u64, st.sampled_from(FinishReason), names, st.none() | token),
                max_size=2,
            )
        ),
        tickets=draw(st.lists(st.builds(TicketIssued, u64, st.binary(max_size=20), st.booleans()), max_size=2)),
        adopted=draw(st.lists(st.builds(Adopted, u64, u64, number, u32, u32), max_size=2)),
        handoff_failed=draw(st.lists(st.builds(HandoffFailed, u64, names, st.booleans()), max_size=2)),
        kv_events=draw(
            st.lists(
                st.builds(PagesStored, st.binary(max_size=16), digests, st.sampled_from(["device", "host"]))
                | st.builds(PagesRemoved, digests, st.sampled_from(["device", "host"]))
                | st.just(PagesCleared()),
                max_size=2,
            )
        ),
        peers=draw(
            st.lists(st.builds(PeerStatus, names, u64, st.booleans(), names, number, names), max_size=2),
        ),
        kv_seq=draw(u64),
        load=draw(st.none() | loads),
    )


@given(commands)
def test_command_round_trip(command: Command) -> None:
    data = command_to_proto(command, now=0.0).SerializeToString()
    assert command_from_proto(pb.Command.FromString(data), now=0.0) == command


@given(frames())
def test_frame_round_trip(frame: Frame) -> None:
    data = frame_to_proto(frame).SerializeToString()
    assert frame_from_proto(pb.Frame.FromString(data)) == frame
