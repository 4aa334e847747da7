"""The transports that join processes, with real processes that are killed, stopped and restarted."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from bench.page_source import KEY, SourceProcess, SourceSpec, content, make_transport
from engine.core.digest import page_digests, root_digest
from engine.core.types import KVLayout, token_buffer
from kv_transfer.api import (
    Broken,
    Cause,
    DropPeer,
    FirstToken,
    Held,
    JoinPeer,
    OfferTicket,
    OpenHandoff,
    PeerReady,
    Proven,
    Settled,
    TransferOutcome,
)
from kv_transfer.host_pool import HostPool
from kv_transfer.layout import layout_hash
from kv_transfer.manager import TransferManager
from kv_transfer.pairs import POOL_PARTS
from kv_transfer.ticket import Ticket, seal_ticket
from kv_transfer.transports.base import Completion, OpStatus, PageRead, peer_key
from kv_transfer.transports.seal import open_descriptors

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["grpc", "nixl"])]
TIMEOUT_S = 60.0
ROOT = root_digest(b"", "m")
LAYOUT = KVLayout("m", num_layers=8, num_kv_heads=2, head_dim=64, page_size=16, dtype="float32")
NUM_PAGES, NUM_REUSED = 256, 32


class Reader:
    """A decode worker of this process."""

    def __init__(self, kind: str) -> None:
        self.pool = HostPool(LAYOUT, NUM_PAGES)
        self.woken = threading.Event()
        transport = make_transport(kind, self.pool, peer_key("d", 1))
        self.manager = TransferManager(self.pool, [transport], ("d", 1), KEY, notify=self.woken.set)
        self.seen: list[TransferOutcome] = []

    def wait(self, wanted: Callable[[TransferOutcome], bool]) -> TransferOutcome:
        """The first outcome that is wanted; waits to be woken, as an engine loop does."""
        while True:
            self.woken.clear()
            self.seen += self.manager.outcomes()
            for index, outcome in enumerate(self.seen):
                if wanted(outcome):
                    return self.seen.pop(index)
            assert self.woken.wait(TIMEOUT_S), f"not there after {TIMEOUT_S} s; there is {self.seen}"

    def broken(self, id_: int) -> Cause | None:
        """How that handoff ends: None is proven. When it is broken, waits until it is settled as well."""
        end = self.wait(lambda outcome: isinstance(outcome, Proven | Broken) and outcome.id == id_)
        if isinstance(end, Proven):
            return None
        self.wait(lambda outcome: outcome == Settled(id_))
        return end.cause

    def join(self, source: SourceProcess) -> None:
        self.manager.submit(JoinPeer(source.info))
        self.ready(source)

    def ready(self, source: SourceProcess) -> None:
        self.wait(lambda outcome: isinstance(outcome, PeerReady) and outcome.incarnation == source.spec.incarnation)

    def pull(self, id_: int, source: SourceProcess) -> None:
        tokens = token_buffer(range(NUM_PAGES * LAYOUT.page_size))
        pages = tuple(range(NUM_PAGES))
        ticket = Ticket(
            id=id_,
            worker_id="p",
            incarnation=source.spec.incarnation,
            layout_hash=layout_hash(LAYOUT),
            token_begin=0,
            token_end=len(tokens),
            layer_begin=0,
            layer_end=LAYOUT.num_layers,
            pages=pages,
            generations=(2,) * NUM_PAGES,
            digest=page_digests(ROOT, tokens, LAYOUT.page_size)[-1],
            expires_ms=60_000,
            first=FirstToken(1, None, 0),
        )
        self.manager.submit(OpenHandoff(id_, tokens, ROOT, pages, 0, time.monotonic() + TIMEOUT_S))
        self.manager.submit(OfferTicket(id_, seal_ticket(ticket, KEY)))

    def holds(self, page: int) -> bool:
        return bytes(self.pool.read(page, 0, LAYOUT.num_layers)) == content(page, 2, LAYOUT.page_bytes)


@pytest.fixture
def open_all() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, kind: str) -> tuple[SourceProcess, Reader]:
    source = SourceProcess(SourceSpec(kind, LAYOUT, NUM_PAGES))
    stack.callback(source.end)
    reader = Reader(kind)
    stack.callback(reader.manager.close)
    reader.join(source)
    return source, reader


def test_pages_of_another_process_are_pulled_and_proven(kind: str, open_all: ExitStack) -> None:
    source, reader = start(open_all, kind)
    reader.pull(1, source)
    assert reader.broken(1) is None
    assert all(reader.holds(page) for page in range(NUM_PAGES))
    source.tell("bump 200")
    reader.pull(2, source)
    assert reader.broken(2) is Cause.GENERATION


def test_a_killed_worker_breaks_its_handoff_and_a_new_incarnation_serves(kind: str, open_all: ExitStack) -> None:
    source, reader = start(open_all, kind)
    reader.pull(1, source)
    source.end()
    assert reader.broken(1) in (Cause.PEER, None), "None: it was faster than the signal"
    port = int(source.address.rpartition(":")[2] or 0)
    again = SourceProcess(SourceSpec(kind, LAYOUT, NUM_PAGES, incarnation=2, port=port))
    open_all.callback(again.end)
    reader.manager.submit(DropPeer("p", 1))
    reader.join(again)
    reader.pull(2, source)
    assert reader.broken(2) is Cause.PEER, "a ticket of the dead incarnation"
    reader.pull(3, again)
    assert reader.broken(3) is None
    assert all(reader.holds(page) for page in range(NUM_PAGES))


def test_a_stopped_worker_is_found_and_heals_when_it_goes_on(kind: str, open_all: ExitStack) -> None:
    source, reader = start(open_all, kind)
    source.process.send_signal(signal.SIGSTOP)
    for id_ in range(1, 5):
        reader.pull(id_, source)
    found = reader.wait(lambda outcome: isinstance(outcome, Broken | Proven))
    reader.seen.append(found)
    source.process.send_signal(signal.SIGCONT)
    causes = {reader.broken(id_) for id_ in range(1, 5)}
    assert causes <= {Cause.PEER, None}, "None: memory of one host can be read while its process is stopped"
    if Cause.PEER in causes:
        reader.ready(source)
    reader.pull(9, source)
    assert reader.broken(9) is None
    assert all(reader.holds(page) for page in range(NUM_PAGES))


def test_a_hung_worker_keeps_a_part_of_the_readers_pages_and_frees_the_others(
    kind: str, open_all: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NIXL what was posted stays in quarantine; over gRPC nothing does. Nothing lands in the other pages later."""
    monkeypatch.setenv("UCX_TLS", "tcp")  # the memory of this host could be read while its process is stopped
    source, reader = start(open_all, kind)
    source.process.send_signal(signal.SIGSTOP)
    try:
        reader.pull(1, source)
        broken = reader.wait(lambda outcome: isinstance(outcome, Broken | Proven))
        assert isinstance(broken, Broken) and broken.cause is Cause.PEER
        end = reader.wait(lambda outcome: isinstance(outcome, Held | Settled))
        held = end.pages if isinstance(end, Held) else frozenset()
        assert len(held) <= NUM_PAGES // POOL_PARTS
        free = [page for page in range(NUM_PAGES) if page not in held]
        for page in free:
            reader.pool.write(page, 0, LAYOUT.num_layers, bytes(LAYOUT.page_bytes))
    finally:
        source.process.send_signal(signal.SIGCONT)
    reader.ready(source)
    assert not any(any(reader.pool.read(page, 0, LAYOUT.num_layers)) for page in free)
    reader.pull(2, source)
    assert reader.broken(2) is None
    assert all(reader.holds(page) for page in range(NUM_PAGES))


def test_no_page_that_is_reused_during_the_read_passes_the_proof(kind: str, open_all: ExitStack) -> None:
    """The published hazard: the source reuses pages while they are read, and every read ends well."""
    source = SourceProcess(SourceSpec(kind, LAYOUT, NUM_PAGES))
    open_all.callback(source.end)
    pool = HostPool(LAYOUT, NUM_PAGES)
    transport = make_transport(kind, pool, peer_key("d", 1))
    open_all.callback(transport.close)
    opened = open_descriptors(source.info.transports, source.peer, KEY)
    transport.connect(replace(source.info, transports=opened))
    source.tell(f"reuse {NUM_REUSED} 0.0005")
    pages, peer = tuple(range(NUM_REUSED)), source.peer
    proven = wrong_but_noticed = 0
    give_up_s = time.monotonic() + TIMEOUT_S
    op = 0
    while proven < 5 or wrong_but_noticed < 5:
        assert time.monotonic() < give_up_s, f"{proven} proven, {wrong_but_noticed} wrong pages noticed"
        transport.read_generations(op + 1, peer, pages)
        before = _wait(transport, op + 1).generations
        transport.read_pages(PageRead(op + 2, peer, pages, pages, 0, LAYOUT.num_layers))
        _wait(transport, op + 2)
        transport.read_generations(op + 3, peer, pages)
        after = _wait(transport, op + 3).generations
        op += 3
        for page, first, last in zip(pages, before, after, strict=True):
            if first % 2:
                continue  # being written: no ticket would name it
            right = bytes(pool.read(page, 0, LAYOUT.num_layers)) == content(page, first, LAYOUT.page_bytes)
            assert right or first != last, f"page {page} passed the proof with wrong bytes"
            proven += first == last
            wrong_but_noticed += not right


def _wait(transport, op: int) -> Completion:  # noqa: ANN001
    give_up_s = time.monotonic() + TIMEOUT_S
    while True:
        for completion in transport.poll():
            assert completion.op == op and completion.status is OpStatus.DONE, completion
            return completion
        assert time.monotonic() < give_up_s
        threading.Event().wait(0.0002)
