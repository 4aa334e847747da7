"""Random handoffs in virtual time: delays, reuse of source pages, cancels, hung, dead and restarted workers.

Whatever happens: a handoff that is proven has the right bytes and keeps them, every handoff has exactly one terminal
outcome, and a destination page goes to its next handoff only when nothing can write to it any more. The second test
takes away what a session does at its end; what proves pages is taken away in test_campaign.py, before whole services.
"""

import random
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import pytest

from kv_transfer import session as session_module
from kv_transfer.api import CancelHandoff, DropPeer, JoinPeer, Proven, Settled
from kv_transfer.peer import PeerConfig
from kv_transfer.plan import num_pages_for
from kv_transfer.session import Session
from kv_transfer.transports.base import Completion, OpStatus
from kv_transfer.transports.fake import FakeNetwork
from tests.fakes.handoffs import FIRST, LAYOUT, Worker, digests, holds, offer, open_handoff, prompt

NUM_SOURCES = 2
SECONDS = 1.5


class WrongBytes(AssertionError):
    """A proven page does not hold what its tokens say."""


class NeverEnded(AssertionError):
    """A handoff has no terminal outcome, and its pages are stranded."""


@dataclass
class Pull:
    """One handoff as the test knows it."""

    tokens: "array[int]"
    pages: tuple[int, ...]
    source_pages: list[int]
    source: Worker
    tickets: list[bytes] = field(default_factory=list)
    proven: bool = False


class Campaign:
    """One seed: everything is drawn from it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.network = FakeNetwork(self.delay_s)
        config = PeerConfig(posted_s=0, min_posted_bytes=12 * LAYOUT.page_bytes, stall_grace_s=0.1, join_stall_s=0.1)
        self.d = Worker(self.network, "d", num_pages=48, config=config)
        self.sources = [self.start(f"p{i}", 1) for i in range(NUM_SOURCES)]
        self.free = list(range(48))
        self.pulls: dict[int, Pull] = {}
        self.ended: set[int] = set()
        self.next_id = 1
        self.num_proven = 0

    def delay_s(self, reader: str, source: str, num_pages: int) -> float:
        return self.draw.choice([0.0005, 0.002, 0.01, 0.04]) * self.draw.random()

    def start(self, id_: str, incarnation: int) -> Worker:
        worker = Worker(self.network, id_, incarnation)
        self.d.core.handle(JoinPeer(worker.info), self.network.now)
        return worker

    # ------------------------------------------------------------ what may happen

    def open(self) -> None:
        tokens = prompt(self.draw.randrange(1, 25), seed=self.next_id)
        count = num_pages_for(len(tokens), LAYOUT.page_size)
        if len(self.free) < count:
            return
        source = self.draw.choice(self.sources)
        pages = tuple(self.free.pop() for _ in range(count))
        source_pages = self.draw.sample(range(source.pool.num_pages), count)
        pull = Pull(tokens, pages, source_pages, source)
        self.pulls[self.next_id] = pull
        source.compute(tokens, source_pages)
        deadline_s = self.network.now + self.draw.choice([0.05, 5.0])
        self.d.core.handle(open_handoff(self.next_id, tokens, pages, deadline_s=deadline_s), self.network.now)
        self.make_tickets(self.next_id, pull)
        self.next_id += 1

    def make_tickets(self, id_: int, pull: Pull) -> None:
        """Chunks and layer groups in any order, some of them twice; now and then one of another prompt."""
        ends = sorted({*range(8, len(pull.tokens), 8), len(pull.tokens)})
        for begin, end in zip([0, *ends], ends, strict=False):
            groups = self.draw.choice([[(0, 3)], [(0, 1), (1, 3)], [(0, 2), (1, 3)]])
            for layers in groups:
                ticket = pull.source.ticket(id_, pull.tokens, pull.source_pages, begin, end, layers)
                if self.draw.random() < 0.02:
                    ticket = self.of_another_prompt(id_, pull, begin, end, layers)
                pull.tickets += [offer(ticket).ticket] * self.draw.choice([1, 1, 2])
        self.draw.shuffle(pull.tickets)

    def of_another_prompt(self, id_: int, pull: Pull, begin: int, end: int, layers: tuple[int, int]):  # noqa: ANN201
        other = prompt(len(pull.tokens), seed=99_999)
        other_pages = self.draw.sample(range(pull.source.pool.num_pages), len(pull.source_pages))
        pull.source.compute(other, other_pages)
        return replace(pull.source.ticket(id_, other, other_pages, begin, end, layers), first=FIRST)

    def deliver(self) -> None:
        waiting = [(id_, pull) for id_, pull in self.pulls.items() if pull.tickets]
        if waiting:
            id_, pull = self.draw.choice(waiting)
            sealed = pull.tickets.pop()
            self.d.core.handle(replace(offer(pull.source.ticket(id_, prompt(4), [0])), ticket=sealed), self.network.now)

    def reuse(self) -> None:
        """A source gives some page to another prompt, as rule 1 says: the generation first."""
        source = self.draw.choice(self.sources)
        page = self.draw.randrange(source.pool.num_pages)
        source.compute(prompt(4, seed=self.draw.randrange(1 << 20)), [page])

    def cancel(self) -> None:
        if self.pulls:
            self.d.core.handle(CancelHandoff(self.draw.choice(list(self.pulls))), self.network.now)

    def stop_or_resume(self) -> None:
        source = self.draw.choice(self.sources)
        self.draw.choice([self.network.stop, self.network.resume, self.network.resume])(source.key)

    def fail_reads(self) -> None:
        """The network says that reads failed, and lets their bytes land all the same."""
        self.network.fail_reads(self.draw.choice(self.sources).key)

    def restart(self) -> None:
        index = self.draw.randrange(NUM_SOURCES)
        old = self.sources[index]
        self.network.kill(old.key)
        if self.draw.random() < 0.5:
            self.d.core.handle(DropPeer(old.id, old.incarnation), self.network.now)
        self.sources[index] = self.start(old.id, old.incarnation + 1)

    # ------------------------------------------------------------ the run

    def run(self) -> None:
        events: list[tuple[Callable[[], None], float]] = [
            (self.open, 12),
            (self.deliver, 60),
            (self.reuse, 8),
            (self.cancel, 3),
            (self.stop_or_resume, 0.3),
            (self.restart, 0.2),
            (self.fail_reads, 0.3),
        ]
        names, weights = zip(*events, strict=True)
        while self.network.now < SECONDS:
            for event in self.draw.choices(names, weights, k=self.draw.randrange(6)):
                event()
            self.advance(self.draw.random() * 0.004)
        for source in self.sources:
            self.network.resume(source.key)
        self.advance(10.0)
        if self.ended != set(range(1, self.next_id)):
            raise NeverEnded(set(range(1, self.next_id)) - self.ended)
        assert sorted(self.free + [page for pull in self.pulls.values() for page in pull.pages]) == list(range(48))

    def advance(self, seconds: float) -> None:
        self.d.run(self.network.now + seconds)
        for outcome in self.d.outcomes:
            if isinstance(outcome, Proven | Settled):
                assert outcome.id not in self.ended, "two terminal outcomes"
                self.ended.add(outcome.id)
            if isinstance(outcome, Proven):
                self.pulls[outcome.id].proven = True
                self.num_proven += 1
            elif isinstance(outcome, Settled):
                self.give_back(outcome.id)
        self.d.outcomes.clear()
        self.check_bytes()

    def give_back(self, id_: int) -> None:
        self.free.extend(self.pulls.pop(id_).pages)
        self.draw.shuffle(self.free)

    def check_bytes(self) -> None:
        for id_, pull in list(self.pulls.items()):
            if not pull.proven:
                continue
            for page, digest in zip(pull.pages, digests(pull.tokens), strict=True):
                if not holds(self.d.pool, page, digest):
                    raise WrongBytes(f"handoff {id_}, page {page}")
            if self.draw.random() < 0.1:
                self.give_back(id_)


@pytest.mark.parametrize("block", [0, 1, *(pytest.param(block, marks=pytest.mark.slow) for block in range(2, 6))])
def test_no_wrong_byte_no_double_end_no_lost_page(block: int) -> None:
    proven = handoffs = 0
    for seed in range(block * 10, block * 10 + 10):
        campaign = Campaign(seed)
        campaign.run()
        handoffs += campaign.next_id - 1
        proven += campaign.num_proven
    assert proven > 300 and handoffs > 1.5 * proven, "the campaign must exercise both ends"


# ---------------------------------------------------------------- planted bugs


@contextmanager
def without_settling() -> Iterator[None]:
    original = Session._drain
    Session._drain = lambda self: []  # type: ignore[method-assign]
    yield
    Session._drain = original  # type: ignore[method-assign]


@contextmanager
def without_waiting_after_errors() -> Iterator[None]:
    """An error counts as the end of its read."""
    original = Session.on_completion

    def on_completion(self: Session, completion: Completion, now: float) -> list[session_module.Effect]:
        if completion.op not in self.reads_in_flight:
            return []
        if completion.status is OpStatus.FAILING:
            completion = replace(completion, status=OpStatus.FAILED)
        return original(self, completion, now)

    Session.on_completion = on_completion  # type: ignore[method-assign]
    yield
    Session.on_completion = original  # type: ignore[method-assign]


MUTANTS = [
    (without_settling, NeverEnded),
    (without_waiting_after_errors, WrongBytes),
]


@pytest.mark.parametrize(("mutant", "finding"), MUTANTS, ids=lambda value: value.__name__)
def test_the_campaign_notices_each_missing_protection(
    mutant: Callable[[], AbstractContextManager[None]], finding: type[AssertionError]
) -> None:
    with mutant(), pytest.raises(finding):
        for seed in range(100):
            Campaign(seed).run()
