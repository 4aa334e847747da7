"""A worker without a model: it speaks engine.core.messages, and each token follows from the tokens before it.

So a wrong, missing or doubled token anywhere shows at once: `answer` says what a call must give, whatever happened
on the way. Pure: `on_command` and `step` with the time as an argument; the process, the network and the clock belong
to whoever holds it.
"""

import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from engine.core.digest import page_digests, root_digest
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
    KVEvent,
    PagesCleared,
    PagesRemoved,
    PagesStored,
    PeerJoined,
    PeerStatus,
    Prefill,
    Release,
    SendPrefixes,
    Started,
    TicketIssued,
)
from engine.core.types import FinishReason, KVLayout, Request, Sampling, TokenLogprob, WorkerInfo, WorkerLoad
from kv_transfer.transports.base import peer_key

VOCABULARY = 97
STOP_TOKEN = 7


def next_token(tokens: "array[int]", seed: int) -> int:
    """The oracle: what follows `tokens`."""
    data = tokens.tobytes() + seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(data, digest_size=4).digest(), "little") % VOCABULARY


def logprob_of(token: int) -> TokenLogprob:
    """As good as any, and tied to its token."""
    return TokenLogprob(token, -token / VOCABULARY)


def answer(prompt: "array[int]", sampling: Sampling) -> list[int]:
    """All tokens that a call must give."""
    tokens = prompt[:]
    while len(tokens) - len(prompt) < sampling.max_tokens:
        tokens.append(next_token(tokens, sampling.seed))
        if tokens[-1] in sampling.stop_token_ids:
            break
    return list(tokens[len(prompt) :])


def worker_info(
    name: str,
    incarnation: int = 1,
    roles: tuple[str, ...] = ("prefill", "decode"),
    page_size: int = 4,
    num_pages: int = 64,
) -> WorkerInfo:
    """A worker of the test model."""
    layout = KVLayout("test-model", 2, 2, 8, page_size, "float32")
    return WorkerInfo(name, incarnation, roles, f"{name}:{incarnation}", "test", layout, num_pages, 4096)


@dataclass
class FakeFaults:
    """How often this worker does what it should not, as probabilities."""

    refuse: float = 0.0
    fail_handoff: float = 0.0
    lose_events: float = 0.0


class FakeCache:
    """Pages by digest, each below its parent, leaves evicted by chance when there are too many."""

    def __init__(self, info: WorkerInfo, rng: Random) -> None:
        self._layout = info.layout
        self._max_pages = info.num_pages
        self._rng = rng
        self.parents: dict[bytes, bytes] = {}
        """Page digest -> its parent."""
        self.events: list[KVEvent] = []

    def chain(self, request: Request) -> list[bytes]:
        """Names of the full pages of what the request came with."""
        root = root_digest(request.cache_salt, self._layout.model_hash)
        return page_digests(root, request.tokens, self._layout.page_size)

    def find(self, request: Request) -> int:
        """Tokens of the request that need not be computed; the last one always must be."""
        if request.sampling.num_prompt_logprobs is not None:
            return 0
        usable = (len(request.tokens) - 1) // self._layout.page_size
        held = [digest in self.parents for digest in self.chain(request)[:usable]]
        return [*held, False].index(False) * self._layout.page_size

    def store(self, request: Request) -> None:
        """The request's pages are computed."""
        parent = root_digest(request.cache_salt, self._layout.model_hash)
        for digest in self.chain(request):
            if digest not in self.parents and not self._make_room(keep=parent):
                return
            if digest not in self.parents:
                self.parents[digest] = parent
                self.events.append(PagesStored(parent, (digest,)))
            parent = digest

    def _make_room(self, keep: bytes) -> bool:
        if len(self.parents) >= self._max_pages:
            leaves = sorted(self.parents.keys() - set(self.parents.values()) - {keep})
            if not leaves:
                return False
            gone = self._rng.choice(leaves)
            del self.parents[gone]
            self.events.append(PagesRemoved((gone,)))
        return True

    def say_all(self) -> None:
        """A snapshot, instead of whatever was not said yet."""
        self.events = [PagesCleared()]
        self.events += [PagesStored(parent, (digest,)) for digest, parent in self.parents.items()]


@dataclass
class _Row:
    request: Request
    prefill_only: bool
    tokens: "array[int]"
    computed: int = 0
    started: bool = False


@dataclass
class _Adoption:
    request: Request
    since_s: float | None = None
    source: str = ""
    first_token: int | None = None
    failed: str = ""


class FakeWorker:
    """One incarnation. `peers` finds the other end of a pull: None when that incarnation does not answer."""

    def __init__(
        self,
        info: WorkerInfo,
        rng: Random,
        peers: "Callable[[str], FakeWorker | None]",
        faults: FakeFaults | None = None,
        chunk: int = 16,
    ) -> None:
        self.info = info
        self.faults = faults or FakeFaults()
        self.rows: dict[int, _Row] = {}
        self.adoptions: dict[int, _Adoption] = {}
        self.leases: set[int] = set()
        self.commands: list[Command] = []
        self.draining = False
        """Whether it was asked to leave; it says so in its load reports."""
        self.cache = FakeCache(info, rng)
        self._rng = rng
        self._peers = peers
        self._chunk = chunk
        self._says_finished = rng.random() < 0.5
        """Whether a prefill leg that ended well says so."""
        self._kv_seq = 0
        self._load_seq = 0
        self._frame = Frame()

    @property
    def key(self) -> str:
        """What peers call it."""
        return peer_key(self.info.id, self.info.incarnation)

    @property
    def idle(self) -> bool:
        """Nothing of any request is left here."""
        return not (self.rows or self.adoptions or self.leases)

    def end_session(self) -> None:
        """The router's stream ended: so do its requests."""
        self.rows.clear()
        self.adoptions.clear()
        self.leases.clear()
        self._frame = Frame()

    # ------------------------------------------------------------------------------------------------ commands

    def on_command(self, command: Command) -> None:
        """Take one command; what follows from it is in the next frame."""
        self.commands.append(command)
        match command:
            case Generate(request) | Prefill(request):
                if not self._refused(request.id):
                    self.rows[request.id] = _Row(request, isinstance(command, Prefill), request.tokens[:])
            case Adopt(request):
                if not self._refused(request.id):
                    self.adoptions[request.id] = _Adoption(request)
            case DeliverTicket(id, ticket):
                self._on_ticket(id, ticket)
            case Cancel(id) | Release(id):
                self.rows.pop(id, None)
                self.adoptions.pop(id, None)
                self.leases.discard(id)
            case PeerJoined(info):
                ready = self._peers(peer_key(info.id, info.incarnation)) is not None
                self._frame.peers.append(PeerStatus(info.id, info.incarnation, ready, "fake", 1e9))
            case SendPrefixes():
                self.cache.say_all()
            case Drain():
                self.draining = True

    def _refused(self, id: int) -> bool:
        assert id not in self.rows and id not in self.adoptions, "an attempt's id came twice"
        refused = self._rng.random() < self.faults.refuse
        if refused:
            self._frame.finished.append(Finished(id, FinishReason.ERROR, "refused"))
        return refused

    def _on_ticket(self, id: int, data: bytes) -> None:
        adoption = self.adoptions.get(id)
        if adoption is None:
            return
        ticket = json.loads(data)
        if ticket["tokens"] != list(adoption.request.tokens):
            adoption.failed = "the ticket is for another prompt"
        adoption.source = ticket["worker"]
        adoption.first_token = ticket["first_token"]

    # ----------------------------------------------------------------------------------------------------- step

    def step(self, now: float) -> Frame:
        """Advance every request, and say what happened since the last step."""
        for id, adoption in list(self.adoptions.items()):
            self._adopt(id, adoption, now)
        for id, row in list(self.rows.items()):
            self._advance(id, row, now)
        self._load_seq += 1
        frame, self._frame = self._frame, Frame()
        frame.load = self._load(now)
        if self.cache.events:
            self._kv_seq += 1
            frame.kv_seq = self._kv_seq
            if self._rng.random() >= self.faults.lose_events:
                frame.kv_events = self.cache.events
            self.cache.events = []
        if not any(frame.logprobs or ()):
            frame.logprobs = None
        return frame

    def _load(self, now: float) -> WorkerLoad:
        waiting = [len(row.tokens) - row.computed for row in self.rows.values() if row.computed < len(row.tokens) - 1]
        return WorkerLoad(
            seq=self._load_seq,
            reported_s=now,
            queued_requests=len(waiting),
            queued_tokens=sum(waiting),
            running_rows=len(self.rows) - len(waiting),
            free_pages=self.info.num_pages,
            num_pages=self.info.num_pages,
            step_s=0.01,
            prefill_tokens_per_s=0.0,
            draining=self.draining,
        )

    def _adopt(self, id: int, adoption: _Adoption, now: float) -> None:
        if now >= adoption.request.deadline_s:
            del self.adoptions[id]
            self._frame.finished.append(Finished(id, FinishReason.DEADLINE))
            return
        if adoption.first_token is None:
            return
        if adoption.since_s is None:
            adoption.since_s = now
        source = self._peers(adoption.source)
        if source is None and now - adoption.since_s < 0.2:
            return
        failure = adoption.failed
        if source is None or id not in source.leases:
            failure = "the pages could not be read"
        elif self._rng.random() < self.faults.fail_handoff:
            failure = "generations changed"
        del self.adoptions[id]
        if failure:
            self._frame.handoff_failed.append(HandoffFailed(id, failure, source is None))
            return
        request = adoption.request
        tokens = request.tokens[:]
        tokens.append(adoption.first_token)
        self._frame.adopted.append(Adopted(id, 1000, 0.001, len(tokens) // 4, 0))
        self.cache.store(request)
        self.rows[id] = _Row(request, False, tokens, len(tokens) - 1, started=True)

    def _advance(self, id: int, row: _Row, now: float) -> None:
        request = row.request
        if now >= request.deadline_s:
            self._finish(id, FinishReason.DEADLINE)
            return
        if not row.started:
            row.started = True
            row.computed = self.cache.find(request)
            self._frame.started.append(Started(id, row.computed, 0.001))
        row.computed = min(row.computed + self._chunk, len(row.tokens))
        if row.computed < len(row.tokens):
            if row.prefill_only:
                self._issue(row, None)
            return
        self._draw(id, row)

    def _draw(self, id: int, row: _Row) -> None:
        request = row.request
        if len(row.tokens) == len(request.tokens):
            self.cache.store(request)
        token = next_token(row.tokens, request.sampling.seed)
        row.tokens.append(token)
        frame = self._frame
        frame.ids.append(id)
        frame.tokens.append(token)
        if frame.logprobs is None:
            frame.logprobs = []
        frame.logprobs.append(logprob_of(token) if request.sampling.num_logprobs is not None else None)
        if row.prefill_only:
            self._issue(row, token)
            self.leases.add(id)
            del self.rows[id]
            if self._says_finished:
                frame.finished.append(Finished(id, FinishReason.LENGTH))
        elif token in request.sampling.stop_token_ids:
            self._finish(id, FinishReason.STOP, token)
        elif len(row.tokens) - request.num_prompt >= request.sampling.max_tokens:
            self._finish(id, FinishReason.LENGTH)

    def _finish(self, id: int, reason: FinishReason, stop_token: int | None = None) -> None:
        del self.rows[id]
        self._frame.finished.append(Finished(id, reason, stop_token=stop_token))

    def _issue(self, row: _Row, first_token: int | None) -> None:
        ticket = {"worker": self.key, "tokens": list(row.request.tokens), "first_token": first_token}
        self._frame.tickets.append(TicketIssued(row.request.id, json.dumps(ticket).encode(), first_token is not None))
