"""Which router gets which word: one frame for each session while the engine loop goes round once. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.messages import Adopted, Finished, Frame, HandoffFailed, KVEvent, PeerStatus, Started, TicketIssued
from engine.core.result import StepResult
from engine.core.types import WorkerLoad
from engine.server.role import Ended, RequestWord


@dataclass(slots=True)
class _Session:
    """`frame` is being filled; `ids` are the requests that this session submitted and that are not over."""

    frame: Frame
    ids: set[int]
    hears_events: bool = False
    """From its first SendPrefixes on."""
    peers: set[tuple[str, int]] = field(default_factory=set)
    """(id, incarnation) of the workers that this router introduced."""


class Sessions:
    """Every request belongs to the session that submitted it. Peers and load go to all sessions, prefix events to those
    that asked.

    Words about requests that nobody owns (any more) are dropped: their router is gone or has been told the end.
    """

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}
        self._owner: dict[int, int] = {}
        self._peers: dict[tuple[str, int], PeerStatus] = {}
        self._kv_seq = 0

    @property
    def keys(self) -> tuple[int, ...]:
        """The sessions that are open."""
        return tuple(self._sessions)

    @property
    def num_requests(self) -> int:
        """Requests that somebody owns."""
        return len(self._owner)

    def open(self, key: int) -> None:
        """A router connected: it first hears what is known of peers."""
        self._sessions[key] = _Session(Frame(peers=list(self._peers.values())), set())

    def close(self, key: int) -> list[int]:
        """That router is gone. Returns its requests: the caller cancels them. Idempotent."""
        session = self._sessions.pop(key, None)
        if session is None:
            return []
        for id in session.ids:
            del self._owner[id]
        return list(session.ids)

    def bind(self, id: int, key: int) -> bool:
        """Session `key` submits request `id`. False when the id is taken or the session is gone."""
        if id in self._owner or key not in self._sessions:
            return False
        self._owner[id] = key
        self._sessions[key].ids.add(id)
        return True

    def may_touch(self, id: int, key: int) -> bool:
        """May session `key` speak about request `id`? Nobody else may while somebody owns it."""
        return self._owner.get(id, key) == key and key in self._sessions

    def add(self, word: RequestWord) -> None:
        """Put one word into its router's frame; the last word about a request ends its ownership."""
        key = self._owner.get(word.id)
        if key is None:
            return
        frame = self._sessions[key].frame
        match word:
            case Started():
                frame.started.append(word)
            case TicketIssued():
                frame.tickets.append(word)
            case Adopted():
                frame.adopted.append(word)
            case Finished():
                frame.finished.append(word)
                self._forget(word.id)
            case HandoffFailed():
                frame.handoff_failed.append(word)
                self._forget(word.id)
            case Ended():
                self._forget(word.id)

    def add_rows(self, result: StepResult) -> None:
        """Put the tokens of one step into the frames. With one router, the usual case, nothing is copied."""
        if not result.ids and not result.prompt_logprobs:
            return
        if len(self._sessions) == 1:
            (session,) = self._sessions.values()
            frame = session.frame
            if not frame.ids and not frame.prompt_logprobs:
                frame.step_id = result.step_id
                frame.ids, frame.tokens, frame.logprobs = result.ids, result.tokens, result.logprobs
                frame.prompt_logprobs = result.prompt_logprobs
                return
        self._add_rows_by_owner(result)

    def add_events(self, events: Sequence[KVEvent]) -> None:
        """Tell every router that asked for prefixes once how the prefix cache changed."""
        if not events:
            return
        self._kv_seq += 1
        for session in self._sessions.values():
            if session.hears_events:
                session.frame.kv_events.extend(events)
                session.frame.kv_seq = self._kv_seq

    def add_snapshot(self, key: int, events: Sequence[KVEvent]) -> None:
        """Tell one router all that the prefix cache holds, as of the last `add_events`."""
        session = self._sessions.get(key)
        if session is not None:
            session.hears_events = True
            session.frame.kv_events.extend(events)
            session.frame.kv_seq = self._kv_seq

    def introduce(self, key: int, worker_id: str, incarnation: int) -> None:
        """The router of session `key` says that this worker is there."""
        if key in self._sessions:
            self._sessions[key].peers.add((worker_id, incarnation))

    def live_peers(self) -> list[PeerStatus]:
        """Of every worker that a connected router says is there. Not ready while nothing is known of it."""
        live = {peer for session in self._sessions.values() for peer in session.peers}
        return [self._peers.get(peer) or PeerStatus(*peer, False, message="not proven yet") for peer in sorted(live)]

    def add_peer(self, status: PeerStatus) -> None:
        """Tell every router, now and when it connects later, whether a peer can be pulled from."""
        self._peers[status.worker_id, status.incarnation] = status
        for session in self._sessions.values():
            session.frame.peers.append(status)

    def forget_peer(self, worker_id: str, incarnation: int) -> None:
        """That incarnation left; routers that connect later need not hear of it."""
        self._peers.pop((worker_id, incarnation), None)
        for session in self._sessions.values():
            session.peers.discard((worker_id, incarnation))

    def add_load(self, load: WorkerLoad) -> None:
        """Tell every router how busy this worker is."""
        for session in self._sessions.values():
            session.frame.load = load

    def take(self) -> list[tuple[int, Frame]]:
        """The frames that have something to say, with their sessions; new empty ones take their place."""
        filled = [(key, session) for key, session in self._sessions.items() if session.frame]
        frames = [(key, session.frame) for key, session in filled]
        for _, session in filled:
            session.frame = Frame()
        return frames

    def _forget(self, id: int) -> None:
        key = self._owner.pop(id)
        self._sessions[key].ids.discard(id)

    def _add_rows_by_owner(self, result: StepResult) -> None:
        logprobs = result.logprobs
        for row, id in enumerate(result.ids):
            frame = self._frame_of(id)
            if frame is None:
                continue
            frame.step_id = result.step_id
            frame.ids.append(id)
            frame.tokens.append(result.tokens[row])
            if logprobs is not None:
                # A frame may hold rows of a step that had no log probabilities.
                frame.logprobs = frame.logprobs or [None] * (len(frame.ids) - 1)
                frame.logprobs.append(logprobs[row])
            elif frame.logprobs is not None:
                frame.logprobs.append(None)
        for id, values in result.prompt_logprobs:
            frame = self._frame_of(id)
            if frame is not None:
                frame.prompt_logprobs.append((id, values))

    def _frame_of(self, id: int) -> Frame | None:
        key = self._owner.get(id)
        return None if key is None else self._sessions[key].frame
