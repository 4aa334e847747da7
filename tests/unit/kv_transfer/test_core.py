"""Two workers and everything between them in virtual time."""

from dataclasses import replace

import pytest

from engine.core.errors import IllegalEvent
from engine.core.protocol import PROTOCOL
from engine.core.types import TokenBuffer
from kv_transfer.api import (
    Broken,
    CancelHandoff,
    Cause,
    DropPeer,
    Held,
    JoinPeer,
    PeerReady,
    PeerRefused,
    Proven,
    Settled,
)
from kv_transfer.pairs import POOL_PARTS
from kv_transfer.peer import PeerConfig
from kv_transfer.transports.fake import FakeNetwork
from tests.fakes.handoffs import LAYOUT, Worker, digests, fill, holds, offer, open_handoff, prompt

TOKENS = prompt(18)
SRC = [3, 4, 9, 1, 2]
DST = (10, 11, 12, 13, 14)


class World:
    """A prefill worker p with a computed prompt, and a decode worker d that was told of it."""

    def __init__(self, delay_s: float = 0.004, config: PeerConfig | None = None) -> None:
        self.delay_s = delay_s
        self.network = FakeNetwork(lambda reader, source, num_pages: self.delay_s)
        self.p = Worker(self.network, "p")
        self.d = Worker(self.network, "d", config=config)
        self.p.compute(TOKENS, SRC)
        self.d.core.handle(JoinPeer(self.p.info), 0.0)

    @property
    def now(self) -> float:
        return self.network.now

    def run(self, seconds: float) -> None:
        self.d.run(self.now + seconds)

    def joined(self) -> "World":
        self.run(0.1)
        ready = self.d.outcomes.pop()
        assert isinstance(ready, PeerReady), ready
        return self

    def hand_over(self, id_: int = 1, **deadline: float) -> None:
        self.d.core.handle(open_handoff(id_, TOKENS, DST, **deadline), self.now)
        self.d.core.handle(offer(self.p.ticket(id_, TOKENS, SRC)), self.now)

    def arrived(self) -> bool:
        return all(holds(self.d.pool, page, digest) for page, digest in zip(DST, digests(TOKENS), strict=True))


@pytest.fixture
def world() -> World:
    return World().joined()


def causes(worker: Worker) -> list[Cause]:
    return [outcome.cause for outcome in worker.outcomes if isinstance(outcome, Broken)]


def test_a_pair_proves_itself_over_the_fake_network() -> None:
    world = World(delay_s=0.001)
    world.run(0.1)
    (ready,) = world.d.outcomes
    assert isinstance(ready, PeerReady)
    assert (ready.worker_id, ready.incarnation, ready.transport, ready.message) == ("p", 1, "fake", "")
    assert ready.bytes_per_s > 0
    assert world.d.core.idle


def test_pages_arrive_and_are_proven(world: World) -> None:
    world.hand_over()
    assert not world.d.core.idle and world.d.core.reading
    world.run(0.05)
    (proven,) = world.d.outcomes
    assert isinstance(proven, Proven) and (proven.pulled_pages, proven.local_pages) == (5, 0)
    assert world.arrived()
    assert world.d.core.idle and not world.d.core.reading


def test_chunks_are_pulled_while_prefill_still_computes(world: World) -> None:
    world.d.core.handle(open_handoff(1, TOKENS, DST), world.now)
    for begin, end in ((0, 8), (8, 16), (16, 18)):
        world.d.core.handle(offer(world.p.ticket(1, TOKENS, SRC, begin, end)), world.now)
        world.run(0.02)
    assert isinstance(world.d.outcomes[-1], Proven)
    assert world.arrived()


def test_a_page_reused_during_the_read_is_never_proven(world: World) -> None:
    world.hand_over()
    world.run(0.002)
    last_to_land = max(SRC)
    world.p.pool.generations[last_to_land] += 1
    fill(world.p.pool, last_to_land, bytes(16))
    world.run(0.05)
    assert not world.arrived()
    assert causes(world.d) == [Cause.GENERATION]
    assert world.d.outcomes[-1] == Settled(1)


def test_a_page_reused_after_its_bytes_landed_is_not_proven_either(world: World) -> None:
    """The proof is conservative: it does not know when the new owner came."""
    world.hand_over()
    world.run(0.0045)
    world.p.pool.generations[SRC[0]] += 1
    world.run(0.05)
    assert world.arrived()
    assert causes(world.d) == [Cause.GENERATION]


def test_cancel_settles_only_when_the_last_byte_has_landed(world: World) -> None:
    world.hand_over()
    world.run(0.001)
    world.d.core.handle(CancelHandoff(1), world.now)
    world.run(0.001)
    assert world.d.outcomes == [Held(1, frozenset(DST))]
    world.run(0.01)
    assert world.d.outcomes[1:] == [Settled(1)]
    landed = [bytes(world.d.pool.read(page, 0, LAYOUT.num_layers)) for page in DST]
    world.run(0.1)
    assert landed == [bytes(world.d.pool.read(page, 0, LAYOUT.num_layers)) for page in DST]
    world.d.core.handle(CancelHandoff(1), world.now)
    world.run(0.01)
    assert world.d.outcomes[1:] == [Settled(1)]


def test_reads_that_were_not_posted_are_taken_back() -> None:
    world = World(config=PeerConfig(posted_s=0, min_posted_bytes=LAYOUT.page_bytes)).joined()
    world.hand_over()
    world.run(0.001)
    world.d.core.handle(CancelHandoff(1), world.now)
    world.run(0.005)
    assert world.d.outcomes == [Held(1, frozenset({DST[3]})), Settled(1)], "the fourth read of five was posted"


def test_a_hung_peer_holds_what_was_posted_and_no_more() -> None:
    """However many handoffs were on their way: so it is a part of the pool that can be out of use, never all of it."""
    world = World(config=PeerConfig(posted_s=10.0, min_posted_bytes=LAYOUT.page_bytes)).joined()
    world.network.stop(world.p.key)
    for id_ in range(1, 6):
        pages = tuple(range(5 * id_, 5 * id_ + 5))
        world.d.core.handle(open_handoff(id_, TOKENS, pages), world.now)
        world.d.core.handle(offer(world.p.ticket(id_, TOKENS, SRC, 0, 4)), world.now)
    world.run(20.0)
    assert causes(world.d) == [Cause.PEER] * 5
    held = {o.id: o.pages for o in world.d.outcomes if isinstance(o, Held)}
    settled = {o.id for o in world.d.outcomes if isinstance(o, Settled)}
    assert settled | held.keys() == set(range(1, 6)) and not settled & held.keys()
    assert 0 < sum(map(len, held.values())) <= world.d.pool.num_pages // POOL_PARTS
    world.network.resume(world.p.key)
    world.run(1.0)
    assert {o.id for o in world.d.outcomes if isinstance(o, Settled)} == set(range(1, 6))


@pytest.mark.parametrize("end", ["kill", "drop"])
def test_reads_that_waited_for_a_lost_peer_settle_too(end: str) -> None:
    world = World(config=PeerConfig(posted_s=0, min_posted_bytes=4 * LAYOUT.page_bytes)).joined()
    world.hand_over()
    if end == "kill":
        world.network.kill(world.p.key)
    else:
        world.d.core.handle(DropPeer("p", 1), world.now)
    world.run(0.2)
    assert causes(world.d) == [Cause.PEER] and Settled(1) in world.d.outcomes


def test_a_dead_peer_breaks_its_handoffs_at_once_and_is_tried_again(world: World) -> None:
    world.hand_over(1)
    world.d.core.handle(open_handoff(2, TOKENS, (20, 21, 22, 23, 24)), world.now)
    world.d.core.handle(offer(world.p.ticket(2, TOKENS, SRC, 0, 4)), world.now)
    world.network.kill(world.p.key)
    world.run(0.2)
    assert causes(world.d) == [Cause.PEER, Cause.PEER]
    assert {o.id for o in world.d.outcomes if isinstance(o, Settled)} == {1, 2}
    refused = [o for o in world.d.outcomes if isinstance(o, PeerRefused)]
    assert refused and not refused[0].permanent
    world.d.core.handle(open_handoff(3, TOKENS, DST), world.now)
    world.d.core.handle(offer(world.p.ticket(3, TOKENS, SRC)), world.now)
    world.run(0.01)
    assert world.d.outcomes[-1] == Settled(3), "nothing is pulled from a suspect peer"


def test_a_hung_peer_breaks_its_handoffs_in_under_a_second_and_heals(world: World) -> None:
    world.network.stop(world.p.key)
    world.hand_over()
    world.run(0.9)
    assert causes(world.d) == [Cause.PEER]
    assert not any(isinstance(o, Settled) for o in world.d.outcomes), "its bytes may still land"
    world.network.resume(world.p.key)
    world.run(1.0)
    assert [type(o) for o in world.d.outcomes if not isinstance(o, PeerRefused)] == [
        Broken,
        Held,
        Settled,
        PeerReady,
    ]
    world.hand_over(2)
    world.run(0.1)
    assert isinstance(world.d.outcomes[-1], Proven)


def test_nothing_is_pulled_from_a_suspect_peer_though_it_lives() -> None:
    world = World(config=PeerConfig(first_pause_s=100.0)).joined()
    world.network.stop(world.p.key)
    world.hand_over()
    world.run(0.9)
    world.network.resume(world.p.key)
    world.run(0.1)
    empty = bytes(world.d.pool.read(20, 0, LAYOUT.num_layers))
    world.d.core.handle(open_handoff(2, TOKENS, (20, 21, 22, 23, 24)), world.now)
    world.d.core.handle(offer(world.p.ticket(2, TOKENS, SRC)), world.now)
    world.run(0.1)
    assert causes(world.d) == [Cause.PEER, Cause.PEER] and world.d.outcomes[-1] == Settled(2)
    assert bytes(world.d.pool.read(20, 0, LAYOUT.num_layers)) == empty


def test_a_reader_that_stood_still_blames_nobody(world: World) -> None:
    world.hand_over()
    late = world.now + 3.0  # neither polled nor ticked meanwhile, and nothing landed: the whole machine stood still
    world.d.core.tick(late)
    assert world.d.core.take_outcomes() == []
    world.run(0.05)
    assert isinstance(world.d.outcomes[-1], Proven)


def starve(world: World, seconds: float, pause_s: float = 0.15) -> None:
    """The whole reader gets the processor only now and then, and so does what receives its bytes."""
    end_s = world.now + seconds
    while world.now < end_s:
        world.network.advance(world.now + pause_s)
        world.d.core.poll(world.now)
        world.d.core.tick(world.now)
        world.d.outcomes += world.d.core.take_outcomes()


@pytest.mark.parametrize("starved", [True, False])
def test_bytes_that_come_late_to_a_starved_reader_are_nobodys_fault(world: World, starved: bool) -> None:
    world.delay_s = 0.7
    world.hand_over()
    world.delay_s = 0.004
    if starved:
        starve(world, 1.0)
        assert [type(outcome) for outcome in world.d.outcomes] == [Proven]
    else:
        world.run(1.0)
        assert causes(world.d) == [Cause.PEER], "a reader that is awake all the time sees a peer that is hung"


def test_a_starved_reader_still_finds_a_stopped_source(world: World) -> None:
    world.network.stop(world.p.key)
    world.hand_over()
    starve(world, 0.5)
    assert causes(world.d) == [], "it watched for a third of a second only"
    starve(world, 1.5)
    assert causes(world.d) == [Cause.PEER]


def test_time_without_reads_is_not_watching(world: World) -> None:
    world.d.run(world.now + 0.5)
    world.network.advance(world.now + 60.0)  # idle: nobody ticks
    world.network.stop(world.p.key)
    world.hand_over()
    begin_s = world.now
    while not causes(world.d):
        world.run(0.01)
    assert 0.5 <= world.now - begin_s < 0.9


def test_bytes_that_land_after_an_error_reach_quarantined_pages_only(world: World) -> None:
    world.hand_over()
    world.run(0.001)
    world.network.fail_reads(world.p.key)
    before = [bytes(world.d.pool.read(page, 0, LAYOUT.num_layers)) for page in DST]
    world.d.core.poll(world.now)
    world.d.outcomes += world.d.core.take_outcomes()
    assert causes(world.d) == [Cause.TRANSPORT], "said at once"
    assert Settled(1) not in world.d.outcomes, "an error is not the end: bytes may still land"
    world.run(0.05)
    assert world.d.outcomes[-1] == Settled(1)
    after = [bytes(world.d.pool.read(page, 0, LAYOUT.num_layers)) for page in DST]
    assert after != before, "bytes landed after the error"
    world.hand_over(2)
    world.run(0.05)
    assert isinstance(world.d.outcomes[-1], Proven), "an error that says nothing of the peer is held against nobody"


def test_a_proof_whose_read_fails_keeps_its_scratch_page_until_the_bytes_have_landed() -> None:
    world = World(delay_s=0.02)
    world.run(0.001)
    world.network.fail_reads(world.p.key)
    world.run(0.3)
    (refused,) = [o for o in world.d.outcomes if isinstance(o, PeerRefused)]
    assert "the link broke" in refused.message
    world.run(2.0)
    assert isinstance(world.d.outcomes[-1], PeerReady)


def test_late_bytes_of_a_hung_peer_never_reach_a_page_that_was_settled(world: World) -> None:
    world.network.stop(world.p.key)
    world.hand_over()
    world.d.core.handle(CancelHandoff(1), world.now)
    world.run(30.0)
    assert Settled(1) not in world.d.outcomes, "never by time alone"
    world.network.kill(world.p.key)
    world.run(0.1)
    assert Settled(1) in world.d.outcomes


def test_tickets_wait_while_the_pair_still_proves_itself() -> None:
    world = World(delay_s=0.01)
    world.hand_over()
    assert not world.d.outcomes
    world.run(0.2)
    assert [type(o) for o in world.d.outcomes] == [PeerReady, Proven]


def test_tickets_that_waited_for_a_failed_proof_break() -> None:
    world = World(delay_s=0.01)
    world.hand_over()
    world.network.kill(world.p.key)
    world.run(0.2)
    assert causes(world.d) == [Cause.PEER]


@pytest.mark.parametrize("damage", ["bytes", "generation", "speed"])
def test_a_pair_that_fails_its_proof_is_refused_in_words(damage: str) -> None:
    world = World(delay_s=50.0 if damage == "speed" else 0.004)
    if damage == "bytes":
        world.p.pool.write(world.p.pool.num_pages, 0, 1, bytes(LAYOUT.page_bytes // LAYOUT.num_layers))
    if damage == "generation":
        world.p.pool.generations[world.p.pool.num_pages] = 99
    world.run(5.1)
    words = {"bytes": "golden page arrived with other bytes", "generation": "incarnation", "speed": "hung"}
    refused = world.d.outcomes[0]
    assert isinstance(refused, PeerRefused) and words[damage] in refused.message and not refused.permanent


def test_a_pair_under_the_bandwidth_floor_is_refused() -> None:
    world = World(config=PeerConfig(join_floor_bytes_per_s=1e12, join_grace_s=0.001))
    world.run(0.1)
    refused = world.d.outcomes[-1]
    assert isinstance(refused, PeerRefused) and "under the floor" in refused.message


def test_other_layouts_and_transports_are_refused_for_good() -> None:
    network = FakeNetwork()
    d = Worker(network, "d")
    p = Worker(network, "p", layout=replace(LAYOUT, dtype="bfloat16"))
    d.core.handle(JoinPeer(p.info), 0.0)
    d.core.handle(JoinPeer(replace(p.info, layout=LAYOUT, transports=(("nixl", b""),))), 0.0)
    first, second = d.core.take_outcomes()
    assert isinstance(first, PeerRefused) and first.permanent and "types of KV values" in first.message
    assert isinstance(second, PeerRefused) and second.message == "no common transport: fake here, nixl there"
    assert d.core.idle


def test_another_model_or_a_far_protocol_is_never_pulled_from_and_a_near_one_is() -> None:
    """What a rolling update relies on: both versions are there at once, and no page crosses between them."""
    world = World().joined()
    other = Worker(world.network, "q", layout=replace(LAYOUT, model_hash="new"))
    far = Worker(world.network, "r")
    near = Worker(world.network, "s")
    for info in (other.info, replace(far.info, protocol=PROTOCOL + 2), replace(near.info, protocol=PROTOCOL - 1)):
        world.d.core.handle(JoinPeer(info), world.now)
    world.run(0.2)
    refused = {each.worker_id: each for each in world.d.outcomes if isinstance(each, PeerRefused)}
    assert refused["q"].permanent and "different models: " in refused["q"].message
    assert refused["r"].permanent and f"worker r speaks protocol {PROTOCOL + 2}" in refused["r"].message
    assert refused.keys() == {"q", "r"}
    assert [each.worker_id for each in world.d.outcomes if isinstance(each, PeerReady)] == ["s"]


def test_a_restarted_worker_is_another_peer(world: World) -> None:
    old = world.p.ticket(1, TOKENS, SRC)
    world.network.kill(world.p.key)
    world.d.core.handle(DropPeer("p", 1), world.now)
    world.p = Worker(world.network, "p", incarnation=2)
    world.p.compute(TOKENS, SRC)
    world.d.core.handle(JoinPeer(world.p.info), world.now)
    world.run(0.1)
    world.d.core.handle(open_handoff(1, TOKENS, DST), world.now)
    world.d.core.handle(offer(old), world.now)
    world.run(0.01)
    assert causes(world.d) == [Cause.PEER]
    world.hand_over(2)
    world.run(0.1)
    assert isinstance(world.d.outcomes[-1], Proven) and world.arrived()


def test_dropping_a_peer_breaks_what_depends_on_it(world: World) -> None:
    world.d.core.handle(open_handoff(1, TOKENS, DST), world.now)
    world.d.core.handle(offer(world.p.ticket(1, TOKENS, SRC, 0, 8)), world.now)
    world.run(0.05)
    world.d.core.handle(DropPeer("p", 1), world.now)
    world.d.core.handle(DropPeer("p", 1), world.now)
    assert [type(o) for o in world.d.core.take_outcomes()] == [PeerRefused, Broken, Settled]


def test_damaged_tickets_break_the_handoff(world: World) -> None:
    world.d.core.handle(open_handoff(1, TOKENS, DST), world.now)
    good = offer(world.p.ticket(1, TOKENS, SRC))
    world.d.core.handle(replace(good, ticket=good.ticket[:-1] + b"\0"), world.now)
    broken, settled = world.d.core.take_outcomes()
    assert isinstance(broken, Broken) and broken.cause is Cause.TICKET and settled == Settled(1)


def test_the_deadline_settles_whatever_else_happens(world: World) -> None:
    world.d.core.handle(open_handoff(1, TOKENS, DST, deadline_s=world.now + 0.5), world.now)
    world.run(0.6)
    assert causes(world.d) == [Cause.DEADLINE] and world.d.outcomes[-1] == Settled(1)


def test_unknown_handoffs_are_ignored_and_double_ones_illegal(world: World) -> None:
    world.d.core.handle(offer(world.p.ticket(5, TOKENS, SRC)), world.now)
    world.d.core.handle(CancelHandoff(5), world.now)
    assert world.d.core.take_outcomes() == []
    world.d.core.handle(open_handoff(1, TOKENS, DST), world.now)
    with pytest.raises(IllegalEvent, match="open already"):
        world.d.core.handle(open_handoff(1, TokenBuffer("i", [1]), (1,)), world.now)


def test_a_read_stuck_in_every_scratch_page_delays_proofs_but_loses_none() -> None:
    world = World().joined()
    world.network.stop(world.p.key)
    world.d.core.handle(DropPeer("p", 1), world.now)
    for _ in range(5):
        world.d.core.handle(JoinPeer(world.p.info), world.now)
        world.run(6.0)
    messages = [o.message for o in world.d.outcomes if isinstance(o, PeerRefused)]
    assert any("scratch" in message for message in messages)
    world.network.resume(world.p.key)
    world.run(10.0)
    assert isinstance(world.d.outcomes[-1], PeerReady)
