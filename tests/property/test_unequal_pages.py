"""Handoffs between workers of other page sizes and other numbers of ranks, in virtual time: every byte is compared."""

from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.digest import extend_digest, page_digests
from engine.core.types import KVLayout
from kv_transfer.api import Broken, Cause, JoinPeer, PeerReady, Proven, Settled, TransferOutcome
from kv_transfer.layout import layout_hash
from kv_transfer.peer import PeerConfig
from kv_transfer.plan import num_pages_for
from kv_transfer.ticket import Ticket
from kv_transfer.transports.fake import FakeNetwork
from tests.fakes.handoffs import FIRST, ROOT, Worker, offer, open_handoff, prompt
from tests.fakes.kv_values import page_holds, write_tokens

LAYOUT = KVLayout("tiny", num_layers=2, num_kv_heads=4, head_dim=4, page_size=4, dtype="bfloat16")
SIZES = st.sampled_from([1, 2, 4, 8, 16])
DEGREES = st.sampled_from([1, 2, 4])
NUM_PAGES, NUM_PAGES_HERE = 80, 60


@dataclass
class Case:
    """A prompt that p computed and d lacks but for its first pages."""

    theirs: int
    mine: int
    num_tokens: int
    num_local: int
    cuts: tuple[int, ...]
    """Where p's chunks end, besides at the end; rounded down to its pages."""
    ranks: tuple[int, int]
    """Of p, and of d."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    theirs, mine, num_tokens = draw(SIZES), draw(SIZES), draw(st.integers(1, 48))
    num_local = draw(st.integers(0, num_tokens // mine))
    cuts = tuple(draw(st.lists(st.integers(1, 48), max_size=3)))
    return Case(theirs, mine, num_tokens, num_local, cuts, (draw(DEGREES), draw(DEGREES)))


class Unequal:
    """Two workers; pages of both are scattered over their pools."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.network = FakeNetwork()
        config = PeerConfig(posted_s=0, min_posted_bytes=4 * LAYOUT.page_bytes)
        theirs = replace(LAYOUT, page_size=case.theirs, tp_size=case.ranks[0])
        mine = replace(LAYOUT, page_size=case.mine, tp_size=case.ranks[1])
        self.p = Worker(self.network, "p", num_pages=NUM_PAGES, layout=theirs)
        self.d = Worker(self.network, "d", num_pages=NUM_PAGES_HERE, layout=mine, config=config)
        self.tokens = prompt(case.num_tokens)
        self.src = _scattered(num_pages_for(case.num_tokens, case.theirs), NUM_PAGES)
        self.dst = _scattered(num_pages_for(case.num_tokens, case.mine), NUM_PAGES_HERE)
        write_tokens(self.p.pool, self.src, self.tokens)
        for page in self.src:
            self.p.pool.generations[page] = page + 1
        self.d.core.handle(JoinPeer(self.p.info), 0.0)
        self.run()
        assert [type(outcome) for outcome in self.taken()] == [PeerReady]

    def run(self) -> None:
        self.d.run(self.network.now + 0.3)

    def taken(self) -> list[TransferOutcome]:
        outcomes, self.d.outcomes = self.d.outcomes, []
        return outcomes

    def hand_over(self) -> None:
        size = self.case.theirs
        ends = sorted({min(self.case.num_tokens, cut // size * size) for cut in self.case.cuts} | {0})
        self.d.core.handle(open_handoff(1, self.tokens, tuple(self.dst), self.case.num_local), self.network.now)
        for begin, end in pairwise([*(end for end in ends if end < self.case.num_tokens), self.case.num_tokens]):
            for layers in ((1, 2), (0, 1)):
                self.d.core.handle(offer(self.ticket(begin, end, layers)), self.network.now)

    def ticket(self, begin: int, end: int, layers: tuple[int, int]) -> Ticket:
        size = self.case.theirs
        pages = tuple(self.src[begin // size : num_pages_for(end, size)])
        full = page_digests(ROOT, self.tokens, size)
        rest = end % size
        digest = full[end // size - 1] if end >= size else ROOT
        return Ticket(
            id=1,
            worker_id="p",
            incarnation=1,
            layout_hash=layout_hash(self.p.layout),
            token_begin=begin,
            token_end=end,
            layer_begin=layers[0],
            layer_end=layers[1],
            pages=pages,
            generations=tuple(self.p.pool.generations[page] for page in pages),
            digest=extend_digest(digest, self.tokens[end - rest : end]) if rest else digest,
            expires_ms=60_000,
            first=FIRST if end == len(self.tokens) else None,
        )


def _scattered(count: int, pool: int) -> list[int]:
    """Distinct: 7 divides neither pool."""
    return [index * 7 % pool for index in range(count)]


@settings(deadline=None, max_examples=60)
@given(cases())
def test_every_missing_token_arrives_and_local_pages_are_left_alone(case: Case) -> None:
    world = Unequal(case)
    world.hand_over()
    world.run()
    (proven,) = world.taken()
    assert isinstance(proven, Proven), proven
    for index, page in enumerate(world.dst):
        held = world.tokens[index * case.mine : (index + 1) * case.mine] if index >= case.num_local else ()
        assert page_holds(world.d.pool, page, held), index
    missing = case.num_tokens - case.num_local * case.mine
    token_bytes = LAYOUT.page_bytes // LAYOUT.page_size
    part = min(case.theirs, case.mine)
    generations = 0 if missing <= 0 else 8 * len(_read_pages(case))
    assert proven.transfer_bytes == -(-missing // part) * part * token_bytes + generations
    assert (proven.pulled_pages, proven.local_pages) == (len(world.dst) - case.num_local, case.num_local)


def _read_pages(case: Case) -> range:
    """Indices of the source pages of which something is missing here."""
    if case.num_local * case.mine >= case.num_tokens:
        return range(0)
    return range(case.num_local * case.mine // case.theirs, num_pages_for(case.num_tokens, case.theirs))


@settings(deadline=None, max_examples=40)
@given(cases(), st.data())
def test_a_source_page_that_was_read_and_reused_is_noticed_and_no_other(case: Case, data: st.DataObject) -> None:
    world = Unequal(case)
    index = data.draw(st.integers(0, len(world.src) - 1))
    world.hand_over()
    world.p.pool.generations[world.src[index]] += 1
    world.run()
    outcomes = world.taken()
    if index in _read_pages(case):
        broken, settled = outcomes
        assert isinstance(broken, Broken) and broken.cause is Cause.GENERATION and settled == Settled(1)
    else:
        assert [type(outcome) for outcome in outcomes] == [Proven]


@settings(deadline=None, max_examples=20)
@given(cases())
def test_a_ticket_about_another_prompt_is_refused_before_any_byte_moves(case: Case) -> None:
    world = Unequal(case)
    world.tokens[0] += 1
    ticket = world.ticket(0, case.num_tokens, (0, 2))
    world.tokens[0] -= 1
    world.d.core.handle(open_handoff(1, world.tokens, tuple(world.dst), case.num_local), world.network.now)
    world.d.core.handle(offer(ticket), world.network.now)
    broken, settled = world.d.core.take_outcomes()
    assert isinstance(broken, Broken) and broken.cause is Cause.DIGEST and settled == Settled(1)
