"""Two workers joined by one kind of transport, so that one suite can be run over every kind."""

import threading
import time
from collections.abc import Callable

from engine.core.types import KVLayout, WorkerInfo
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.base import Completion, OpStatus, PagePool, Transport, peer_key
from kv_transfer.transports.fake import FakeNetwork, FakeTransport
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.nixl import NixlTransport

KEY = b"a cluster key for tests only"
LAYOUT = KVLayout("model", num_layers=4, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
NUM_PAGES = 64
TIMEOUT_S = 20.0

MakeTransport = Callable[[str, PagePool], Transport]


def info_of(worker: str, incarnation: int, transport: Transport, layout: KVLayout = LAYOUT) -> WorkerInfo:
    """What the worker behind `transport` says of itself."""
    return WorkerInfo(
        id=worker,
        incarnation=incarnation,
        roles=("prefill", "decode"),
        address="127.0.0.1:0",
        model="model",
        layout=layout,
        num_pages=NUM_PAGES,
        max_model_len=1024,
        transports=((transport.name, transport.descriptor()),),
    )


def stamp(pool: PagePool, page: int, value: int) -> None:
    """Fill a page with bytes that name the page, the layer and `value`."""
    layout = pool.layout
    layer_bytes = layout.page_bytes // layout.num_layers
    for layer in range(layout.num_layers):
        word = bytes((page & 255, layer, value & 255, value >> 8 & 255))
        pool.write(page, layer, layer + 1, word * (layer_bytes // 4))


def page_bytes(pool: PagePool, page: int) -> bytes:
    """A copy of one page."""
    return bytes(pool.read(page, 0, pool.layout.num_layers))


class Rig:
    """A source and a reader. Every page of the source is stamped with 1, every generation is 1."""

    def __init__(
        self,
        make: MakeTransport,
        idle: Callable[[], None],
        layout: KVLayout = LAYOUT,
        source_layout: KVLayout | None = None,
    ) -> None:
        self.make, self.idle, self.source_layout = make, idle, source_layout or layout
        self.reader_pool = HostPool(layout, NUM_PAGES)
        self.reader = make(peer_key("reader", 1), self.reader_pool)
        self.start_source(incarnation=1)
        self.reader.connect(self.info)

    def start_source(self, incarnation: int) -> None:
        """A (new) process of the source worker, under the same name."""
        self.source_pool = HostPool(self.source_layout, NUM_PAGES)
        for page in range(NUM_PAGES):
            stamp(self.source_pool, page, incarnation)
            self.source_pool.generations[page] = incarnation
        self.peer = peer_key("source", incarnation)
        self.source = self.make(self.peer, self.source_pool)
        self.info = info_of("source", incarnation, self.source, self.source_layout)

    def wait(self, *ops: int, transport: Transport | None = None) -> dict[int, Completion]:
        """Poll until all of `ops` have ended; fails if one ends twice or another one ends."""
        ended: dict[int, Completion] = {}
        give_up_s = time.monotonic() + TIMEOUT_S
        while len(ended) < len(ops):
            for completion in (transport or self.reader).poll():
                if completion.status is OpStatus.FAILING:
                    assert completion.op in ops and completion.op not in ended, completion
                    continue
                assert completion.op in ops and completion.op not in ended, completion
                ended[completion.op] = completion
            assert time.monotonic() < give_up_s, f"ended after {TIMEOUT_S} s: {sorted(ended)} of {sorted(ops)}"
            self.idle()
        return ended

    def close(self) -> None:
        self.reader.close()
        self.source.close()


def _pause() -> None:
    threading.Event().wait(0.0002)


def fake_rig(layout: KVLayout = LAYOUT, source_layout: KVLayout | None = None) -> Rig:
    network = FakeNetwork()
    return Rig(
        lambda peer, pool: FakeTransport(network, peer, pool),
        lambda: network.advance(network.now + 0.0002),
        layout,
        source_layout,
    )


def local_rig(layout: KVLayout = LAYOUT, source_layout: KVLayout | None = None) -> Rig:
    hub = LocalHub()
    return Rig(lambda peer, pool: LocalTransport(hub, peer, pool), _pause, layout, source_layout)


def grpc_rig(layout: KVLayout = LAYOUT, source_layout: KVLayout | None = None) -> Rig:
    return Rig(lambda peer, pool: GrpcTransport(pool, peer, KEY), _pause, layout, source_layout)


def nixl_rig(layout: KVLayout = LAYOUT, source_layout: KVLayout | None = None) -> Rig:
    return Rig(lambda peer, pool: NixlTransport(pool, peer), _pause, layout, source_layout)


RIGS: dict[str, Callable[..., Rig]] = {"fake": fake_rig, "local": local_rig, "grpc": grpc_rig, "nixl": nixl_rig}
