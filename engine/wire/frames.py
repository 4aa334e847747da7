"""Frames <-> protobuf messages of worker.proto: the hot direction, one message a step for all rows."""

from engine.core.messages import (
    DEVICE,
    Adopted,
    Finished,
    Frame,
    HandoffFailed,
    KVEvent,
    PagesCleared,
    PagesRemoved,
    PagesStored,
    PeerStatus,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, PageCount, TokenLogprob, WorkerLoad
from engine.wire import worker_pb2 as pb

_REASON_TO_PROTO = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
    FinishReason.REFUSED: pb.FINISH_REASON_REFUSED,
}
_REASON_FROM_PROTO = {number: reason for reason, number in _REASON_TO_PROTO.items()}


def _logprob_to_proto(value: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=value.token,
        logprob=value.logprob,
        top_tokens=[token for token, _ in value.top],
        top_logprobs=[logprob for _, logprob in value.top],
    )


def _logprob_from_proto(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        message.token, message.logprob, tuple(zip(message.top_tokens, message.top_logprobs, strict=True))
    )


def _event_to_proto(event: KVEvent) -> pb.KVEvent:
    match event:
        case PagesStored(parent, digests, tier):
            return pb.KVEvent(stored=pb.PagesStored(parent=parent, digests=digests, tier=_tier_to_proto(tier)))
        case PagesRemoved(digests, tier):
            return pb.KVEvent(removed=pb.PagesRemoved(digests=digests, tier=_tier_to_proto(tier)))
        case PagesCleared():
            return pb.KVEvent(cleared=pb.PagesCleared())


def _event_from_proto(message: pb.KVEvent) -> KVEvent:
    if message.HasField("stored"):
        stored = message.stored
        return PagesStored(stored.parent, tuple(stored.digests), stored.tier or DEVICE)
    if message.HasField("cleared"):
        return PagesCleared()
    return PagesRemoved(tuple(message.removed.digests), message.removed.tier or DEVICE)


def _tier_to_proto(tier: str) -> str:
    return "" if tier == DEVICE else tier


def _peer_to_proto(peer: PeerStatus) -> pb.PeerStatus:
    return pb.PeerStatus(
        worker_id=peer.worker_id,
        incarnation=peer.incarnation,
        ready=peer.ready,
        transport=peer.transport,
        bytes_per_s=peer.bytes_per_s,
        message=peer.message,
    )


def _peer_from_proto(message: pb.PeerStatus) -> PeerStatus:
    return PeerStatus(
        message.worker_id,
        message.incarnation,
        message.ready,
        message.transport,
        message.bytes_per_s,
        message.message,
    )


def load_to_proto(load: WorkerLoad) -> pb.WorkerLoad:
    """Every field."""
    return pb.WorkerLoad(
        seq=load.seq,
        reported_s=load.reported_s,
        queued_requests=load.queued_requests,
        queued_tokens=load.queued_tokens,
        running_rows=load.running_rows,
        free_pages=load.free_pages,
        num_pages=load.num_pages,
        step_s=load.step_s,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        pages_by_state=[
            pb.PageCount(state=count.state, pages=count.pages, oldest_s=count.oldest_s) for count in load.pages_by_state
        ],
        num_preempted=load.num_preempted,
        draining=load.draining,
        num_page_faults=load.num_page_faults,
        view_digest=load.view_digest,
        queued_pairs=load.queued_pairs,
    )


def load_from_proto(message: pb.WorkerLoad) -> WorkerLoad:
    """The inverse of `load_to_proto`."""
    return WorkerLoad(
        seq=message.seq,
        reported_s=message.reported_s,
        queued_requests=message.queued_requests,
        queued_tokens=message.queued_tokens,
        running_rows=message.running_rows,
        free_pages=message.free_pages,
        num_pages=message.num_pages,
        step_s=message.step_s,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        pages_by_state=tuple(PageCount(count.state, count.pages, count.oldest_s) for count in message.pages_by_state),
        num_preempted=message.num_preempted,
        draining=message.draining,
        num_page_faults=message.num_page_faults,
        queued_pairs=message.queued_pairs,
        view_digest=message.view_digest if message.HasField("view_digest") else None,
    )


def _logprob_rows(rows: list[TokenLogprob | None] | None) -> list[pb.LogprobRow]:
    return [pb.LogprobRow(value=_logprob_to_proto(row)) if row else pb.LogprobRow() for row in rows or ()]


def frame_to_proto(frame: Frame) -> pb.Frame:
    """Token rows stay parallel lists; the rest is rare."""
    return pb.Frame(
        step_id=frame.step_id,
        ids=frame.ids,
        tokens=frame.tokens,
        logprobs=_logprob_rows(frame.logprobs),
        prompt_logprobs=[
            pb.PromptLogprobs(id=id, values=map(_logprob_to_proto, values)) for id, values in frame.prompt_logprobs
        ],
        started=[pb.Started(id=s.id, cached_tokens=s.cached_tokens, queue_s=s.queue_s) for s in frame.started],
        finished=[
            pb.Finished(id=f.id, reason=_REASON_TO_PROTO[f.reason], message=f.message, stop_token=f.stop_token)
            for f in frame.finished
        ],
        tickets=[pb.TicketIssued(id=t.id, ticket=t.ticket, last=t.last) for t in frame.tickets],
        adopted=[
            pb.Adopted(
                id=a.id,
                transfer_bytes=a.transfer_bytes,
                transfer_s=a.transfer_s,
                pulled_pages=a.pulled_pages,
                local_pages=a.local_pages,
            )
            for a in frame.adopted
        ],
        handoff_failed=[
            pb.HandoffFailed(id=h.id, message=h.message, peer_lost=h.peer_lost) for h in frame.handoff_failed
        ],
        peers=map(_peer_to_proto, frame.peers),
        kv_events=map(_event_to_proto, frame.kv_events),
        kv_seq=frame.kv_seq,
        load=load_to_proto(frame.load) if frame.load else None,
    )


def frame_from_proto(message: pb.Frame) -> Frame:
    """The inverse of `frame_to_proto`; a frame without log probabilities has `logprobs` None."""
    rows = [_logprob_from_proto(row.value) if row.HasField("value") else None for row in message.logprobs]
    return Frame(
        step_id=message.step_id,
        ids=list(message.ids),
        tokens=list(message.tokens),
        logprobs=rows or None,
        prompt_logprobs=[(p.id, [_logprob_from_proto(value) for value in p.values]) for p in message.prompt_logprobs],
        started=[Started(s.id, s.cached_tokens, s.queue_s) for s in message.started],
        finished=[
            Finished(f.id, _REASON_FROM_PROTO[f.reason], f.message, f.stop_token if f.HasField("stop_token") else None)
            for f in message.finished
        ],
        tickets=[TicketIssued(t.id, t.ticket, t.last) for t in message.tickets],
        adopted=[Adopted(a.id, a.transfer_bytes, a.transfer_s, a.pulled_pages, a.local_pages) for a in message.adopted],
        handoff_failed=[HandoffFailed(h.id, h.message, h.peer_lost) for h in message.handoff_failed],
        peers=[_peer_from_proto(peer) for peer in message.peers],
        kv_events=[_event_from_proto(event) for event in message.kv_events],
        kv_seq=message.kv_seq,
        load=load_from_proto(message.load) if message.HasField("load") else None,
    )
