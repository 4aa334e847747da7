"""How fast pages move and what their proof costs: `python -m bench.handoff --json`.

Between GPUs (or two pools of one, --device cuda:0), a row for each size of a descriptor:
`python -m bench.handoff --json --speed-only --transports nixl --source-device cuda:0 --device cuda:1 --total-mib 1024
--page-kib 64 256 1024 8192 16384`

For each transport that joins processes, with a source process of its own:
  gb_per_s            pages pulled, against copy_gb_per_s: a plain copy of the same pages in one process
  apart_gb_per_s      the same pages into places that are not neighbours: a descriptor has the size of one page
  cut_gb_per_s        the same into pages that hold four times as many tokens: a run for K and one for V of each layer
  ranks_gb_per_s      the same into a worker of two ranks, each with half of the heads: a run for each position
  proof_us            the extra time of one ticket: reading the generations of all its pages again
  ticket_us           sealing and opening that ticket, and the session's own bookkeeping for it
  handoff_ms          a whole handoff through the manager's thread, ticket to proof
  reuse               pages that the source gave to another owner during the read: wrong ones, and how many the proof
                      let pass (0)
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import torch

from bench.page_source import KEY, SourceProcess, SourceSpec, content, make_pool, make_transport
from engine.core.digest import page_digests, root_digest
from engine.core.types import KVLayout, token_buffer
from engine.runtime.kv_pool import KVPool
from kv_transfer.api import Broken, FirstToken, JoinPeer, OfferTicket, OpenHandoff, PeerReady, Proven
from kv_transfer.layout import layout_hash
from kv_transfer.manager import MAX_POLL_S, MIN_POLL_S, TransferManager
from kv_transfer.reslice import Part, gather, pieces, routes
from kv_transfer.session import GenerationRead, Session, Source
from kv_transfer.ticket import Ticket, open_ticket, seal_ticket
from kv_transfer.transports.base import Completion, OpStatus, PageRead, Transport, peer_key
from kv_transfer.transports.seal import open_descriptors

ROOT = root_digest(b"", "m")
NUM_REUSED = 32
REPEATS = 7
CUT_RATIO = 4


def layout_of(page_bytes: int) -> KVLayout:
    """A page of about that many bytes: 8 layers of 8 heads of 64 in float16, as many tokens as fit."""
    return KVLayout("m", num_layers=8, num_kv_heads=8, head_dim=64, page_size=page_bytes // 16384, dtype="float16")


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Puller:
    """One end of a transport, polled as the manager's thread does."""

    def __init__(self, transport: Transport, peer: str, layout: KVLayout) -> None:
        self.transport, self.peer, self.layout = transport, peer, layout
        self.ops = count(1)

    def wait(self, count: int = 1) -> list[Completion]:
        """Until so many reads have ended. RuntimeError if one failed."""
        ended: list[Completion] = []
        pause_s = MIN_POLL_S
        while len(ended) < count:
            for completion in self.transport.poll():
                if completion.status is not OpStatus.DONE:
                    raise RuntimeError(f"read failed: {completion}")
                ended.append(completion)
                pause_s = MIN_POLL_S
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, MAX_POLL_S)
        return ended

    def pull(self, pages: Sequence[int], here: Sequence[int] | None = None) -> None:
        """Whole pages, to the same numbers here or to others."""
        op = next(self.ops)
        self.transport.read_pages(PageRead(op, self.peer, pages, here or pages, 0, self.layout.num_layers))
        self.wait()

    def generations(self, pages: range) -> tuple[int, ...]:
        """Of remote pages."""
        op = next(self.ops)
        self.transport.read_generations(op, self.peer, pages)
        return self.wait()[0].generations


@contextmanager
def joined(
    spec: SourceSpec, device: str, layout: KVLayout | None = None
) -> Iterator[tuple[SourceProcess, Puller, KVPool]]:
    """A source process, and a connected end of the transport in this one, whose pages may be laid out otherwise."""
    source = SourceProcess(spec)
    pool = make_pool(replace(spec, layout=layout or spec.layout), device)
    transport = make_transport(spec.kind, pool, peer_key("d", 1))
    try:
        opened = open_descriptors(source.info.transports, source.peer, KEY)
        transport.connect(replace(source.info, transports=opened))
        yield source, Puller(transport, source.peer, spec.layout), pool
    finally:
        transport.close()
        source.end()


def copy_rate(layout: KVLayout, num_pages: int, source_device: str, device: str) -> float:
    """GB/s of a plain copy of the pages, one call a page, pools of this process."""
    here = make_pool(SourceSpec("", layout, num_pages), device).tensors_NL2SKE[0]
    there = make_pool(SourceSpec("", layout, num_pages), source_device).tensors_NL2SKE[0]

    def copy() -> None:
        for page in range(num_pages):
            here[page].copy_(there[page])
        if here.is_cuda:
            torch.cuda.synchronize(here.device)

    return num_pages * layout.page_bytes / seconds(copy) / 1e9


def measure_speed(spec: SourceSpec, device: str) -> dict[str, object]:
    """Bandwidth and the cost of the proof."""
    pages = range(spec.num_pages)
    num_bytes = spec.num_pages * spec.layout.page_bytes
    with joined(spec, device) as (_, puller, pool):
        apart = list(range(spec.num_pages - 1, -1, -1))
        apart_s = seconds(lambda: puller.pull(apart, [*apart[1::2], *apart[::2]]))
        pull_s = seconds(lambda: puller.pull(pages))
        proof_s = seconds(lambda: puller.generations(pages), 50)
        last = pages[-1]
        if bytes(pool.read(last, 0, spec.layout.num_layers)) != content(last, 2, spec.layout.page_bytes):
            raise RuntimeError("the last page arrived with other bytes")
    return {
        "transport": spec.kind,
        "page_bytes": spec.layout.page_bytes,
        "pages": spec.num_pages,
        "gb_per_s": round(num_bytes / pull_s / 1e9, 3),
        "apart_gb_per_s": round(num_bytes / apart_s / 1e9, 3),
        "copy_gb_per_s": round(copy_rate(spec.layout, spec.num_pages, spec.device, device), 3),
        "proof_us": round(proof_s * 1e6, 1),
        "proof_share": round(proof_s / pull_s, 4),
    }


def measure_cut(spec: SourceSpec, device: str) -> float:
    """GB/s from the source's pages into pages of CUT_RATIO times as many tokens."""
    mine = replace(spec.layout, page_size=CUT_RATIO * spec.layout.page_size)
    here = range(spec.num_pages // CUT_RATIO)
    reads = [
        (range(piece.src_page, len(here) * CUT_RATIO, CUT_RATIO), piece.cut) for piece in pieces(mine, 0, spec.layout)
    ]
    with joined(spec, device, mine) as (_, puller, pool):

        def pull() -> None:
            for src, cut in reads:
                puller.transport.read_pages(PageRead(next(puller.ops), puller.peer, src, here, 0, mine.num_layers, cut))
            puller.wait(len(reads))

        pull_s = seconds(pull)
        part = Part(mine.page_size - spec.layout.page_size, spec.layout.page_size, 0, mine.num_kv_heads)
        arrived = gather(pool.read(here[-1], 0, mine.num_layers), mine, part, mine.num_layers)
        if bytes(arrived) != content(len(here) * CUT_RATIO - 1, 2, spec.layout.page_bytes):
            raise RuntimeError("the last page arrived with other bytes")
    return len(here) * mine.page_bytes / pull_s / 1e9


def measure_ranks(spec: SourceSpec, device: str) -> float:
    """GB/s from the source's pages into those of a worker of two ranks, both on `device`."""
    mine, pages = replace(spec.layout, tp_size=2), range(spec.num_pages)
    (ways,) = routes(mine, spec.layout)
    with joined(spec, device, mine) as (_, puller, pool):

        def pull() -> None:
            for way in ways:
                read = PageRead(next(puller.ops), puller.peer, pages, pages, 0, mine.num_layers, way.cut)
                puller.transport.read_pages(replace(read, src_rank=way.src_rank, dst_rank=way.dst_rank))
            puller.wait(len(ways))

        pull_s = seconds(pull)
        sent = memoryview(content(pages[-1], 2, spec.layout.page_bytes))
        for way in ways:
            assert way.cut is not None, "the layouts differ"
            arrived = pool.read(pages[-1], 0, mine.num_layers, way.dst_rank)
            if bytes(arrived) != bytes(gather(sent, spec.layout, way.cut.src, mine.num_layers)):
                raise RuntimeError("the last page arrived with other bytes")
    return len(pages) * spec.layout.page_bytes / pull_s / 1e9


def measure_reuse(spec: SourceSpec, device: str, rounds: int) -> dict[str, object]:
    """Reads while the source gives pages to other owners; every read ends DONE."""
    pages, layout = range(NUM_REUSED), spec.layout
    read = wrong = passed = 0
    with joined(spec, device) as (source, puller, pool):
        source.tell(f"reuse {NUM_REUSED} 0.0002")
        for _ in range(rounds):
            before = puller.generations(pages)
            puller.pull(pages)
            after = puller.generations(pages)
            for page, first, last in zip(pages, before, after, strict=True):
                if first % 2:
                    continue  # being written: no ticket would name it
                right = bytes(pool.read(page, 0, layout.num_layers)) == content(page, first, layout.page_bytes)
                read += 1
                wrong += not right
                passed += not right and first == last
    return {"pages_read": read, "wrong_without_proof": wrong, "wrong_with_proof": passed}


def ticket_for(spec: SourceSpec) -> tuple[Ticket, OpenHandoff]:
    """One ticket over all pages, and the handoff that it belongs to."""
    tokens = token_buffer(range(spec.num_pages * spec.layout.page_size))
    pages = tuple(range(spec.num_pages))
    ticket = Ticket(
        id=1,
        worker_id="p",
        incarnation=spec.incarnation,
        layout_hash=layout_hash(spec.layout),
        token_begin=0,
        token_end=len(tokens),
        layer_begin=0,
        layer_end=spec.layout.num_layers,
        pages=pages,
        generations=(2,) * spec.num_pages,
        digest=page_digests(ROOT, tokens, spec.layout.page_size)[-1],
        expires_ms=60_000,
        first=FirstToken(1, None, 0),
    )
    return ticket, OpenHandoff(1, tokens, ROOT, pages, 0, time.monotonic() + 600)


def measure_ticket(spec: SourceSpec) -> float:
    """Microseconds of everything that is computed for one ticket: seal, open, digests, plan, states."""
    ticket, handoff = ticket_for(spec)
    source = Source("p", spec.layout, spec.num_pages, 1 << 30)

    def whole_life() -> None:
        opened = open_ticket(seal_ticket(ticket, KEY), KEY)
        session = Session(handoff, spec.layout, count(1))
        for effect in session.on_ticket(opened, source, 0.0):
            if isinstance(effect, PageRead):
                (check,) = session.on_completion(Completion(effect.op, OpStatus.DONE), 0.0)
        if not isinstance(check, GenerationRead):
            raise RuntimeError("the session did not ask for the generations")
        session.on_completion(Completion(check.op, OpStatus.DONE, 0, ticket.generations), 0.0)

    return seconds(whole_life, 50) * 1e6


def measure_handoff(spec: SourceSpec, device: str) -> float:
    """Milliseconds of a whole handoff through the manager's thread."""
    source, woken = SourceProcess(spec), threading.Event()
    pool = make_pool(spec, device)
    transport = make_transport(spec.kind, pool, peer_key("d", 1))
    manager = TransferManager(pool, [transport], ("d", 1), KEY, notify=woken.set)
    ticket, handoff = ticket_for(spec)
    sealed = seal_ticket(ticket, KEY)

    def wait_for(kind: type) -> None:
        while True:
            woken.clear()
            outcomes = manager.outcomes()
            if any(isinstance(outcome, Broken) for outcome in outcomes):
                raise RuntimeError(f"the handoff broke: {outcomes}")
            if any(isinstance(outcome, kind) for outcome in outcomes):
                return
            woken.wait()

    def hand_over() -> None:
        manager.submit(handoff)
        manager.submit(OfferTicket(1, sealed))
        wait_for(Proven)

    try:
        manager.submit(JoinPeer(source.info))
        wait_for(PeerReady)
        return seconds(hand_over) * 1e3
    finally:
        manager.close()
        source.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--transports", default="nixl,grpc")
    parser.add_argument("--page-kib", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--total-mib", type=int, default=64, help="pulled by one ticket")
    parser.add_argument("--source-device", default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reuse-rounds", type=int, default=200)
    parser.add_argument("--speed-only", action="store_true", help="bandwidth and proof; seconds instead of minutes")
    arguments = parser.parse_args()
    rows = []
    for kind in arguments.transports.split(","):
        for kib in arguments.page_kib:
            num_pages = max(NUM_REUSED, arguments.total_mib * 1024 // kib)
            spec = SourceSpec(kind, layout_of(kib << 10), num_pages, device=arguments.source_device)
            row = measure_speed(spec, arguments.device)
            if not arguments.speed_only:
                row["cut_gb_per_s"] = round(measure_cut(spec, arguments.device), 3)
                row["ranks_gb_per_s"] = round(measure_ranks(spec, arguments.device), 3)
                row["ticket_us"] = round(measure_ticket(spec), 1)
                row["handoff_ms"] = round(measure_handoff(spec, arguments.device), 3)
                row["reuse"] = measure_reuse(spec, arguments.device, arguments.reuse_rounds)
            rows.append(row)
            print(json.dumps(row) if not arguments.json else f"{kind} {kib} KiB done", file=sys.stderr)
    print(json.dumps({"bench": "handoff", "devices": [arguments.source_device, arguments.device], "rows": rows}))


if __name__ == "__main__":
    main()
