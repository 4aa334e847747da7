"""Workers in virtual time: real role, real engine core, real transfer core, over integers for KV and a fake network.

The executor's memory is the bytes of the pool, so a page that was moved wrongly gives wrong tokens.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.messages import (
    Adopted,
    Command,
    DeliverTicket,
    Finished,
    HandoffFailed,
    PeerJoined,
    PeerStatus,
    TicketIssued,
)
from engine.core.types import KVLayout, Request, Sampling, WorkerInfo, token_buffer
from engine.server.role import Ended, RequestWord, Word
from kv_transfer.api import TransferCommand
from kv_transfer.core import TransferCore
from kv_transfer.holding import TicketSealer
from kv_transfer.host_pool import HostPool
from kv_transfer.role import WorkerRole
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.fake import FakeNetwork, FakeTransport
from tests.fakes.executor import FakeExecutor, expected_tokens

KEY = b"a cluster key for tests only"
PAGE_SIZE = 4
MAX_MODEL_LEN = 256


def int64_layout(page_size: int = PAGE_SIZE) -> KVLayout:
    """One signed 64-bit integer a slot."""
    return KVLayout("model", num_layers=1, num_kv_heads=1, head_dim=1, page_size=page_size, dtype="float32")


def executor_over(pool: HostPool) -> FakeExecutor:
    """An executor whose memory is the pool's."""
    executor = FakeExecutor(pool.layout.page_size, pool.num_pages)
    executor.memory = [pool.read(page, 0, pool.layout.num_layers).cast("q") for page in range(pool.num_pages)]
    return executor


def make_request(id: int, tokens: Iterable[int], *, deadline_s: float = 1e6, **sampling: object) -> Request:
    """Greedy-like defaults; `sampling` are fields of Sampling."""
    buffer = token_buffer(list(tokens))
    return Request(id, buffer, len(buffer), Sampling(**sampling), arrival_s=0.0, deadline_s=deadline_s)  # type: ignore[arg-type]


def right_tokens(request: Request) -> list[int]:
    """What `request` must get, whatever happens around it."""
    return expected_tokens(list(request.tokens), request.num_prompt, request.sampling, MAX_MODEL_LEN)


@dataclass
class Said:
    """Everything that a worker told its router, in order of kinds."""

    words: list[Word] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)

    def of(self, kind: type, id: int | None = None) -> list:
        """All words of a kind, about one request or all."""
        return [word for word in self.words if isinstance(word, kind) and (id is None or word.id == id)]

    def ends(self, id: int) -> list[Word]:
        """What ended a request: there must never be two."""
        return [word for word in self.words if isinstance(word, Finished | HandoffFailed | Ended) and word.id == id]


class VirtualWorker:
    """A worker's engine thread and transfer thread, one turn at a time."""

    def __init__(
        self, name: str, kind: str, network: FakeNetwork, num_pages: int = 32, max_step_tokens: int = 8
    ) -> None:
        layout = int64_layout()
        key = peer_key(name, 1)
        self.pool = HostPool(layout, num_pages)
        self.executor = executor_over(self.pool)
        config = SchedulerConfig(PAGE_SIZE, num_pages, MAX_MODEL_LEN, max_step_tokens=max_step_tokens, max_rows=16)
        generations = self.pool.generations[:num_pages]
        self.core = EngineCore(config, self.executor, model_hash=layout.model_hash, generations=generations)
        self.transport = FakeTransport(network, key, self.pool)
        self.transfers = TransferCore(self.pool, [self.transport], key, KEY)
        self.role = WorkerRole(self.core, TicketSealer(name, 1, layout, KEY))
        transports = ((self.transport.name, b""),)
        self.info = WorkerInfo(name, 1, (kind,), "", "model", layout, num_pages, MAX_MODEL_LEN, transports)
        self.said = Said()
        self.inbox: deque[Command] = deque()

    def turn(self, now: float) -> None:
        """What the engine loop does once, and what the transfer thread does meanwhile."""
        while self.inbox:
            self._perform(self.role.on_command(self.inbox.popleft(), now), now)
        self.transfers.poll(now)
        self.transfers.tick(now)
        for outcome in self.transfers.take_outcomes():
            self._perform(self.role.on_outcome(outcome, now), now)
        result = self.core.step(now)
        for id, token in zip(result.ids, result.tokens, strict=True):
            self.said.tokens.setdefault(id, []).append(token)
        self._perform(self.role.on_result(result, now), now)
        self.core.check_integrity()

    @property
    def num_held_pages(self) -> int:
        """Pages that somebody holds: neither free nor evictable."""
        return self.pool.num_pages - self.core.load(0.0).free_pages

    def _perform(self, effects: Iterable[Word | TransferCommand], now: float) -> None:
        for effect in effects:
            if isinstance(effect, RequestWord | PeerStatus):
                self.said.words.append(effect)
            else:
                self.transfers.handle(effect, now)


class VirtualPair:
    """A prefill and a decode worker, and a clock."""

    def __init__(self, *, num_pages: int = 32, delay_s: float = 0.001) -> None:
        """`delay_s`: how long a read takes once the pair has proven itself; may be changed at any time."""
        self.now = 0.0
        self.delay_s = 0.001
        self.network = FakeNetwork(lambda reader, source, num_pages: self.delay_s)
        self.prefill = VirtualWorker("p", "prefill", self.network, num_pages)
        self.decode = VirtualWorker("d", "decode", self.network, num_pages)
        self.decode.inbox.append(PeerJoined(self.prefill.info))
        self.run(0.02)
        assert self.decode.said.of(PeerStatus)[-1].ready, self.decode.said.words
        self.delay_s = delay_s

    def run(self, seconds: float, tick_s: float = 0.001) -> None:
        """Let both work for a while."""
        for _ in range(round(seconds / tick_s)):
            self.now += tick_s
            self.network.advance(self.now)
            self.prefill.turn(self.now)
            self.decode.turn(self.now)

    def pass_tickets(self, id: int, start: int = 0) -> int:
        """Deliver the tickets of `id` from number `start` on, like a router. Returns how many there are."""
        tickets: list[TicketIssued] = self.prefill.said.of(TicketIssued, id)
        self.decode.inbox.extend(DeliverTicket(id, issued.ticket) for issued in tickets[start:])
        return len(tickets)

    def adopted(self, id: int) -> bool:
        """Has decode taken over?"""
        return bool(self.decode.said.of(Adopted, id))
