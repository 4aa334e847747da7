"""Workers whose pages hold bytes that follow from their tokens, so that every handed-over byte can be checked."""

from array import array
from hashlib import shake_128

from engine.core.digest import extend_digest, page_digests, root_digest
from engine.core.types import KVLayout, WorkerInfo, token_buffer
from kv_transfer.api import FirstToken, OfferTicket, OpenHandoff, TransferOutcome
from kv_transfer.core import TransferCore
from kv_transfer.host_pool import HostPool
from kv_transfer.layout import layout_hash
from kv_transfer.peer import PeerConfig
from kv_transfer.plan import num_pages_for
from kv_transfer.ticket import Ticket, seal_ticket
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.fake import FakeNetwork, FakeTransport

KEY = b"the cluster key of these tests"
LAYOUT = KVLayout("tiny", num_layers=3, num_kv_heads=1, head_dim=4, page_size=4, dtype="float8_e4m3fn")
ROOT = root_digest(b"tenant", "tiny")
FIRST = FirstToken(token=42, logprob=None, cached_tokens=8)


def prompt(num_tokens: int, seed: int = 0) -> "array[int]":
    """Token ids, different for every seed."""
    return token_buffer([(seed * 7919 + i * i + i) % 50_000 for i in range(num_tokens)])


def digests(tokens: "array[int]") -> list[bytes]:
    """The digest at the end of every page, the last partial one included."""
    size = LAYOUT.page_size
    full = page_digests(ROOT, tokens, size)
    rest = len(tokens) % size
    return [*full, extend_digest(full[-1] if full else ROOT, tokens[-rest:])] if rest else full


def right_bytes(digest: bytes, layer: int) -> bytes:
    """What a page with that digest holds in one layer."""
    return shake_128(digest + bytes([layer])).digest(LAYOUT.page_bytes // LAYOUT.num_layers)


def fill(pool: HostPool, page: int, digest: bytes) -> None:
    """Write all layers of a page."""
    for layer in range(LAYOUT.num_layers):
        pool.write(page, layer, layer + 1, right_bytes(digest, layer))


def holds(pool: HostPool, page: int, digest: bytes) -> bool:
    """True if the page is the one that `digest` names, bit for bit."""
    return all(
        bytes(pool.read(page, layer, layer + 1)) == right_bytes(digest, layer) for layer in range(LAYOUT.num_layers)
    )


def open_handoff(
    id_: int, tokens: "array[int]", pages: tuple[int, ...], num_local: int = 0, deadline_s: float = 1e9
) -> OpenHandoff:
    """OpenHandoff in the tests' one tenant and model."""
    return OpenHandoff(id_, tokens, ROOT, pages, num_local, deadline_s)


def offer(ticket: Ticket) -> OfferTicket:
    """The ticket as it arrives."""
    return OfferTicket(ticket.id, seal_ticket(ticket, KEY))


class Worker:
    """One incarnation of a worker on a fake network."""

    def __init__(
        self,
        network: FakeNetwork,
        id_: str,
        incarnation: int = 1,
        num_pages: int = 32,
        layout: KVLayout = LAYOUT,
        config: PeerConfig | None = None,
    ) -> None:
        self.network, self.id, self.incarnation = network, id_, incarnation
        self.key = peer_key(id_, incarnation)
        self.layout = layout
        self.pool = HostPool(layout, num_pages)
        self.transport = FakeTransport(network, self.key, self.pool)
        self.core = TransferCore(self.pool, [self.transport], self.key, KEY, config)
        self.outcomes: list[TransferOutcome] = []

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            incarnation=self.incarnation,
            roles=("prefill", "decode"),
            address="",
            model="tiny",
            layout=self.layout,
            num_pages=self.pool.num_pages,
            max_model_len=4096,
            transports=(("fake", b""),),
        )

    def compute(self, tokens: "array[int]", pages: list[int]) -> None:
        """Write the KV of `tokens` into `pages` as their next owner: the generation first."""
        for page, digest in zip(pages, digests(tokens), strict=True):
            self.pool.generations[page] += 1
            fill(self.pool, page, digest)

    def ticket(
        self,
        id_: int,
        tokens: "array[int]",
        pages: list[int],
        begin: int = 0,
        end: int | None = None,
        layers: tuple[int, int] = (0, LAYOUT.num_layers),
    ) -> Ticket:
        """For tokens [begin, end) of a prompt whose pages are `pages`; the first token is on the one that ends it."""
        end = len(tokens) if end is None else end
        size = LAYOUT.page_size
        named = tuple(pages[begin // size : num_pages_for(end, size)])
        return Ticket(
            id=id_,
            worker_id=self.id,
            incarnation=self.incarnation,
            layout_hash=layout_hash(self.layout),
            token_begin=begin,
            token_end=end,
            layer_begin=layers[0],
            layer_end=layers[1],
            pages=named,
            generations=tuple(self.pool.generations[page] for page in named),
            digest=digests(tokens[:end])[-1],
            expires_ms=60_000,
            first=FIRST if end == len(tokens) else None,
        )

    def run(self, until_s: float) -> None:
        """Let virtual time pass, polling each millisecond while reads are in flight."""
        while self.network.now < until_s:
            step_s = 0.001 if self.core.reading else 0.01
            self.network.advance(min(self.network.now + step_s, until_s))
            self.core.poll(self.network.now)
            self.core.tick(self.network.now)
            self.outcomes += self.core.take_outcomes()
