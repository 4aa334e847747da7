"""What one worker said after one step, taken apart call by call."""

from collections.abc import Iterable

from engine.core.errors import DeadlineExceeded, IllegalEvent, InvalidRequest
from engine.core.messages import Adopted, DeliverTicket, Finished, Frame, HandoffFailed, PeerStatus, TicketIssued
from engine.core.types import FinishReason, TokenLogprob
from kv_transfer.transports.base import peer_key
from router.attempt import Attempt
from router.call_state import TERMINAL, CallState
from router.calls import CallTable
from router.cost_model import CostModel
from router.events import Effect, Send
from router.flow import Flow
from router.stats import RouterStats
from router.supervisor import Cause, Failure, Supervisor
from router.view import ClusterView
from router.worker import LegKind, WorkerState


class FrameReader:
    """Applies frames to flows and tells the cost model what things took.

    Whatever names an attempt that is not under way any more, or a worker that has no open leg of it, is late and
    means nothing. What comes out of turn is the worker's fault: its leg failed.
    """

    def __init__(
        self,
        table: CallTable,
        view: ClusterView,
        supervisor: Supervisor,
        model: CostModel,
        stats: RouterStats,
        effects: list[Effect],
    ) -> None:
        self._table = table
        self._view = view
        self._supervisor = supervisor
        self._model = model
        self._stats = stats
        self._effects = effects

    def read(self, worker: WorkerState, frame: Frame, now: float) -> None:
        """Apply one frame. Adopted before tokens, tokens before outcomes: the order in which they happened there."""
        self._read_worker(worker, frame, now)
        self._read_prompts(worker, frame)
        for adopted in frame.adopted:
            self._on_adopted(worker, adopted, now)
        touched = self._on_tokens(worker, frame, now) if frame.ids else ()
        for ticket in frame.tickets:
            self._on_ticket(worker, ticket)
        for status in frame.peers:
            if not status.ready:
                self._on_pair_lost(worker, status, now)
        for failed in frame.handoff_failed:
            self._on_handoff_failed(worker, failed, now)
        for finished in frame.finished:
            self._on_finished(worker, finished, now)
        # Last, so that the tokens of a step that ended a call and the end are one delta.
        for flow in touched:
            if flow.state not in TERMINAL:
                self._supervisor.emit(flow)

    def _read_worker(self, worker: WorkerState, frame: Frame, now: float) -> None:
        feed = self._view.feeds[worker.key]
        if frame.kv_events and not feed.is_public:
            feed.apply(frame.kv_seq, frame.kv_events)
        for status in frame.peers:
            if pair := self._view.on_peer_status(worker, status):
                self._model.on_proof(pair, status.bytes_per_s)
        load = frame.load
        if load is not None:
            if worker.on_load(load, now) and load.view_digest is not None and not feed.is_public:
                feed.report(load.view_digest, None, now)
            if load.running_rows and not load.queued_tokens and load.step_s > 0:
                self._model.on_step(worker.key, load.running_rows, load.step_s * 1000)

    def _read_prompts(self, worker: WorkerState, frame: Frame) -> None:
        for started in frame.started:
            if found := self._find(started.id, worker):
                found[0].on_started(found[1], worker.key, started)
        for id, values in frame.prompt_logprobs:
            if found := self._find(id, worker):
                found[0].out.add_prompt_logprobs(values)

    def _find(self, id: int, worker: WorkerState) -> tuple[Flow, Attempt] | None:
        flow = self._table.by_attempt.get(id)
        attempt = flow.attempt_of(id) if flow else None
        if flow is None or attempt is None or attempt.leg_on(worker.key) is None:
            return None
        return flow, attempt

    # ------------------------------------------------------------------------------------------------- tokens

    def _on_tokens(self, worker: WorkerState, frame: Frame, now: float) -> Iterable[Flow]:
        """Returns the flows that have something to emit."""
        touched: dict[int, Flow] = {}
        logprobs: list[TokenLogprob | None] = frame.logprobs or [None] * len(frame.ids)
        by_attempt, key = self._table.by_attempt, worker.key
        for id, token, logprob in zip(frame.ids, frame.tokens, logprobs, strict=True):
            flow = by_attempt.get(id)
            if flow is None:
                continue
            if flow.rival is not None:
                self._supervisor.keep(flow, id, now)
            if (attempt := flow.attempt) is None:
                continue
            try:
                first = flow.on_token(attempt, key, token, logprob, now)
            except IllegalEvent as error:
                self._out_of_turn(flow, attempt, worker, error, now)
                continue
            if first:
                self._on_first_token(flow, attempt, now)
            touched[id] = flow
        for flow in touched.values():
            if flow.state is CallState.HANDOFF and (end := flow.own_end()):
                self._supervisor.finish(flow, *end, now=now)
        return touched.values()

    def _on_first_token(self, flow: Flow, attempt: Attempt, now: float) -> None:
        worker = attempt.computes.worker
        worker.breaker.on_success()
        self._supervisor.computed(attempt)
        work = attempt.work
        if attempt.started:
            cached = attempt.started.cached_tokens
            work = work._replace(new=max(work.new + work.cached - cached, 0), cached=cached)
        took_ms = (now - attempt.sent_s) * 1000
        predicted = attempt.decision.predicted
        if predicted.total_ms and took_ms:
            self._model.ttft_error.observe(abs(predicted.queue_ms + predicted.prefill_ms - took_ms) / took_ms)
        self._model.on_first_token(worker.key, work, took_ms)
        self._supervisor.on_first_token(attempt, now)
        if flow.num_emitted == 1:
            self._stats.prompt_tokens += flow.num_prompt
            self._stats.cached_tokens += min(work.cached, flow.num_prompt)

    # ------------------------------------------------------------------------------------------------- handoff

    def _on_ticket(self, worker: WorkerState, issued: TicketIssued) -> None:
        found = self._find(issued.id, worker)
        if found and (decode := found[1].decode).open:
            self._effects.append(Send(decode.worker.key, DeliverTicket(issued.id, issued.ticket)))

    def _on_adopted(self, worker: WorkerState, adopted: Adopted, now: float) -> None:
        found = self._find(adopted.id, worker)
        if not found:
            return
        flow, attempt = found
        try:
            if attempt.decode.worker is not worker or attempt.prefill is None:
                raise IllegalEvent(f"{worker.info.id} adopted a call that it does not decode")
            flow.on_adopted(adopted, now)
        except IllegalEvent as error:
            self._out_of_turn(flow, attempt, worker, error, now)
            return
        pair = (attempt.prefill.worker.key, worker.key)
        self._effects.extend(attempt.release_prefill())
        self._view.pair_breaker(*pair).on_success()
        if attempt.first_token_s is not None:
            self._model.on_transfer(pair, adopted.transfer_bytes, (now - attempt.first_token_s) * 1000)
        self._stats.handoffs += 1
        self._stats.transfer_bytes += adopted.transfer_bytes
        self._stats.pages_pulled += adopted.pulled_pages
        self._stats.pages_found += adopted.local_pages

    def _on_handoff_failed(self, worker: WorkerState, failed: HandoffFailed, now: float) -> None:
        found = self._find(failed.id, worker)
        if found:
            flow, attempt = found
            leg = attempt.leg_on(worker.key)
            assert leg is not None, "found by its leg"
            leg.ended()
            cause = Cause.PREEMPTED if leg is attempt.prefill else Cause.HANDOFF
            self._supervisor.leg_failed(flow, attempt, Failure(cause, worker, failed.message), now)

    def _on_pair_lost(self, worker: WorkerState, status: PeerStatus, now: float) -> None:
        """Nothing is pulled over that pair: what is computed for it, or waits for pages, need not find out alone.

        For the pair's breaker that is one failure, however many handoffs it ends: the pair proves itself again.
        """
        pair = (peer_key(status.worker_id, status.incarnation), worker.key)
        lost = [id for id in worker.legs if _hands_over(self._table.by_attempt[id], id, pair)]
        for flow, attempt in [found for id in lost if (found := self._find(id, worker))]:
            self._supervisor.leg_failed(flow, attempt, Failure(Cause.PAIR_LOST, worker, status.message), now)
        if lost:
            self._view.pair_breaker(*pair).on_failure(now)

    # ------------------------------------------------------------------------------------------------- outcomes

    def _on_finished(self, worker: WorkerState, finished: Finished, now: float) -> None:
        found = self._find(finished.id, worker)
        if not found:
            return
        flow, attempt = found
        leg = attempt.leg_on(worker.key)
        assert leg is not None, "found by its leg"
        if finished.reason is FinishReason.REFUSED:
            leg.ended()
            self._supervisor.fail(flow, InvalidRequest(finished.message), now)
            return
        done = finished.reason in (FinishReason.STOP, FinishReason.LENGTH)
        if leg is attempt.prefill:
            # A prefill leg that ended well is done computing; its pages stay until they are released.
            if done:
                return
            leg.ended()
        else:
            leg.ended()
            if done and (leg.kind is LegKind.WHOLE or flow.state is CallState.DECODING):
                if flow.rival is not None:
                    self._supervisor.keep(flow, attempt.id, now)
                self._supervisor.finish(flow, finished.reason, finished.stop_token, now)
                return
        if finished.reason is FinishReason.DEADLINE:
            self._supervisor.fail(flow, DeadlineExceeded(f"no answer within {flow.call.timeout_s:g} s"), now)
            return
        message = finished.message or f"ended with {finished.reason}"
        self._supervisor.leg_failed(flow, attempt, Failure(Cause.WORKER_ERROR, worker, message), now)

    def _out_of_turn(self, flow: Flow, attempt: Attempt, worker: WorkerState, error: IllegalEvent, now: float) -> None:
        if attempt.leg_on(worker.key) is not None:
            self._supervisor.leg_failed(flow, attempt, Failure(Cause.PROTOCOL, worker, error.message), now)


def _hands_over(flow: Flow, id: int, pair: tuple[str, str]) -> bool:
    """Whether pages of that attempt of the call are to move from the first to the second of `pair`."""
    attempt = flow.attempt_of(id)
    if attempt is None or attempt.prefill is None or flow.state is CallState.DECODING:
        return False
    return (attempt.prefill.worker.key, attempt.decode.worker.key) == pair
