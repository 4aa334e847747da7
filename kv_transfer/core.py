"""All handoffs and peers of one worker, driven by whoever has a clock: the manager's thread, or virtual time. Pure."""

from collections.abc import Iterable, Sequence
from itertools import count

from engine.core.errors import IllegalEvent, InvalidRequest, Unauthenticated
from kv_transfer.api import (
    CancelHandoff,
    Cause,
    DropPeer,
    JoinPeer,
    OfferTicket,
    OpenHandoff,
    PeerReady,
    TransferCommand,
    TransferOutcome,
)
from kv_transfer.pairs import Pairs
from kv_transfer.peer import PeerConfig
from kv_transfer.session import Effect, GenerationRead, Session, SessionState
from kv_transfer.ticket import Ticket, open_ticket
from kv_transfer.transports.base import Completion, OpStatus, PagePool, PageRead, Transport, peer_key


class TransferCore:
    """Turns commands, ended reads and time into posted reads and outcomes."""

    def __init__(
        self,
        pool: PagePool,
        transports: Sequence[Transport],
        name: str,
        key: bytes,
        config: PeerConfig | None = None,
    ) -> None:
        """`transports` in order of preference; `name` is this worker's own peer_key; `key` opens tickets."""
        self._pool, self._key = pool, key
        self._transports = tuple(transports)
        self._ops = count(1)
        self._pairs = Pairs(pool, transports, config or PeerConfig(), self._ops, name)
        self._sessions: dict[int, Session] = {}
        self._reads: dict[int, tuple[Session, str | None]] = {}
        """By read: whose it is, and from which peer; None once that was told that the read failed."""
        self._held: list[tuple[int, Ticket]] = []
        """Tickets of peers whose first proof is under way."""
        self._outcomes: list[TransferOutcome] = []

    @property
    def reading(self) -> bool:
        """Reads are in flight, of handoffs or of proofs: poll often."""
        return bool(self._reads) or self._pairs.reading

    @property
    def idle(self) -> bool:
        """Only a command can change anything: no need to poll or tick."""
        return not self._sessions and not self._pairs.waiting

    @property
    def num_handoffs(self) -> int:
        """Handoffs that were opened and are not over."""
        return len(self._sessions)

    def take_outcomes(self) -> list[TransferOutcome]:
        """What happened since the last call, in order."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def handle(self, command: TransferCommand, now: float) -> None:
        """Obey one command. Raises IllegalEvent if a handoff is opened twice or does not fit its pages."""
        match command:
            case OpenHandoff():
                self._open(command)
            case OfferTicket():
                self._offer(command, now)
            case CancelHandoff():
                session = self._sessions.get(command.id)
                if session is not None:
                    self._perform(session, session.on_cancel(), now)
            case JoinPeer():
                self._pairs.join(command.info, now)
            case DropPeer():
                self._pairs.drop(peer_key(command.worker_id, command.incarnation), "the worker left")
        self._take_peer_events(now)

    def poll(self, now: float) -> bool:
        """Take in reads that ended or began to fail; True if any did."""
        any_ended = False
        for transport in self._transports:
            for completion in transport.poll():
                any_ended = True
                self._ended(completion, now)
        if any_ended:
            self._take_peer_events(now)
        return any_ended

    def tick(self, now: float) -> None:
        """Time passed. To be called every few milliseconds unless idle."""
        self._pairs.tick(now)
        self._take_peer_events(now)
        for session in [s for s in self._sessions.values() if now >= s.gives_up_s]:
            self._perform(session, session.on_tick(now), now)

    def close(self) -> None:
        """Close the transports: afterwards no memory is touched."""
        for transport in self._transports:
            transport.close()

    # ------------------------------------------------------------ inside

    def _open(self, command: OpenHandoff) -> None:
        if command.id in self._sessions:
            raise IllegalEvent(f"handoff {command.id} is open already")
        self._sessions[command.id] = Session(command, self._pool.layout, self._ops)

    def _offer(self, command: OfferTicket, now: float) -> None:
        session = self._sessions.get(command.id)
        if session is None:
            return
        try:
            ticket = open_ticket(command.ticket, self._key)
        except (InvalidRequest, Unauthenticated) as error:
            self._perform(session, session.on_fault(Cause.TICKET, error.message), now)
            return
        self._accept(session, ticket, now)

    def _accept(self, session: Session, ticket: Ticket, now: float) -> None:
        key = peer_key(ticket.worker_id, ticket.incarnation)
        if self._pairs.is_new(key):
            self._held.append((session.handoff.id, ticket))
        else:
            self._perform(session, session.on_ticket(ticket, self._pairs.source(key), now), now)

    def _ended(self, completion: Completion, now: float) -> None:
        if self._pairs.proof_ended(completion, now):
            return
        session, peer = self._reads.pop(completion.op)
        if peer is not None:
            self._pairs.ended(completion, peer, now)
        if completion.status is OpStatus.FAILING:
            self._reads[completion.op] = (session, None)
        self._perform(session, session.on_completion(completion, now), now)

    def _perform(self, session: Session, effects: Iterable[Effect], now: float) -> None:
        refused: list[int] = []
        for effect in effects:
            if not isinstance(effect, PageRead | GenerationRead):
                self._outcomes.append(effect)
            elif self._pairs.push(effect, now):
                self._reads[effect.op] = (session, effect.peer)
            else:
                refused.append(effect.op)
        for op in refused:
            self._perform(session, session.on_completion(_never_posted(op), now), now)
        self._withdraw(session)
        if session.closed:
            self._sessions.pop(session.handoff.id, None)

    def _withdraw(self, session: Session) -> None:
        """What a session that is over has not posted will not be."""
        if session.state is not SessionState.CANCELLING or session.peer is None:
            return
        withdrawn = self._pairs.withdraw(session.peer, session.reads_in_flight)
        for op in withdrawn:
            del self._reads[op]
        self._outcomes += session.on_withdrawn(withdrawn)

    def _take_peer_events(self, now: float) -> None:
        while self._pairs.events:
            event = self._pairs.events.pop(0)
            self._outcomes.append(event)
            key = peer_key(event.worker_id, event.incarnation)
            if not isinstance(event, PeerReady):
                for session in [s for s in self._sessions.values() if s.peer == key]:
                    self._perform(session, session.on_fault(Cause.PEER, event.message), now)
            self._deliver_held(key, now)

    def _deliver_held(self, key: str, now: float) -> None:
        held, self._held = self._held, []
        for id_, ticket in held:
            session = self._sessions.get(id_)
            if peer_key(ticket.worker_id, ticket.incarnation) != key:
                self._held.append((id_, ticket))
            elif session is not None:
                self._accept(session, ticket, now)


def _never_posted(op: int) -> Completion:
    return Completion(op, OpStatus.FAILED, peer_lost=True, message="the prefill worker was lost")
