"""One seed of the virtual-time campaign, from its draws to its verdict."""

from collections import Counter
from dataclasses import dataclass, field, fields
from math import ceil

from engine.core.errors import BatonError
from router.chance import RandomSource
from router.config import AdmissionConfig, RouterConfig
from simulator.chance import Chance
from simulator.faults import Faults, draw_rates
from simulator.stranger import Stranger
from simulator.worker import WorkerSpec
from simulator.workload import Workload, WorkloadRates, draw_prefixes
from simulator.world import TICK_S, World

LATE_S = TICK_S + 0.01
"""A deadline is noticed with the router's next tick."""
LIMIT_S = 30.0
"""Everything is healed long before; a call without an outcome by now hangs."""
LAST_TROUBLE_S = 0.3
"""After the last call has come nothing begins to go wrong any more, but for so long."""
QUIET_S = 6.0
"""After the last outcome: longer than any read is on its way."""
LOOK_S = 0.1
"""Longer than any message is on its way, unless its stream is stuck: what is quiet twice, so long apart, stays quiet.
So often the router's whole truth is recomputed."""
SILENCE_STEP_S = 0.01


@dataclass(slots=True)
class Wrongs:
    """What must not happen: each is zero when all is well. Mutable."""

    wrong_tokens: int = 0
    wrong_reads: int = 0
    """Tokens drawn from pages that do not hold what the row's tokens say, whoever got them."""
    hung: int = 0
    """Without an outcome in time."""
    failed: int = 0
    """Ended with an error although they had time."""
    leaked_pages: int = 0
    leaked_requests: int = 0
    """Requests, handoffs and calls that somebody still keeps in the end."""
    broken: int = 0
    """Seeds in which an invariant of some part broke."""

    @property
    def wrong(self) -> int:
        """Zero when all is well."""
        return sum(getattr(self, each.name) for each in fields(Wrongs))


@dataclass(slots=True)
class Report(Wrongs):
    """What one seed, or many, showed. Mutable: reports add up."""

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """finished, cancelled, expired (by their own short deadline) or failed."""
    handoffs: int = 0
    reading_handoffs: int = 0
    """Of those, as the reader counts them, the ones that read pages: the others found all of them there."""
    pages_read: int = 0
    moved: int = 0
    """Calls that a draining worker handed on while they decoded."""
    retried: int = 0
    resumed: int = 0
    preempted: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Handoffs that failed, by cause."""
    faults: Counter[str] = field(default_factory=Counter)
    silences: Counter[float] = field(default_factory=Counter)
    """Calls by their longest silence that ended after the first fault, in seconds, rounded up to SILENCE_STEP_S."""

    @property
    def longest_silence_s(self) -> dict[str, float]:
        """Between two outputs of a call, or its arrival and the first: over the calls that lived to see a fault."""
        ordered = sorted(self.silences.elements())
        at = {"p50": len(ordered) // 2, "p99": 99 * len(ordered) // 100, "max": len(ordered) - 1}
        return {name: ordered[index] for name, index in at.items()} if ordered else {}

    def add(self, other: "Report") -> None:
        """Count what `other` showed, too."""
        for name in (each.name for each in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One seed's report, with the trace by which a replay is known to be one, and what broke, in words."""

    seed: int
    report: Report
    trace: int
    message: str = ""


def run_seed(seed: int, source: RandomSource) -> Verdict:
    """Play one seed. `source` must be new and seeded with it: nothing else decides what happens."""
    chance, report, message = Chance(source), Report(), ""
    world = build_world(chance)
    prefixes = draw_prefixes(chance)
    stranger = Stranger(chance)
    load = draw_workload(chance)
    until_s = load.from_s + load.over_s + LAST_TROUBLE_S
    faults = Faults(world, draw_rates(chance, until_s), prefixes, stranger)
    Workload(world, load, prefixes, stranger)
    try:
        play(world, until_s)
        count_leaks(world, report)
    except (AssertionError, BatonError, LookupError, TypeError, ValueError) as error:
        report.broken = 1
        message = f"{type(error).__name__}: {error}"
    count_outcomes(world, report)
    report.faults = faults.counts
    return Verdict(seed, report, world.clock.trace, message)


def build_world(chance: Chance) -> World:
    """Workers of small pools and a router, most of whose policies hand over whenever they can."""
    policy = chance.pick((*7 * ("cost_always_hand_over",), "cost", "round_robin", "random"))
    admission = AdmissionConfig(max_running=chance.pick((4, 1000, 1000)))
    world = World(chance, policy, RouterConfig(admission=admission))
    roles = ["prefill"] * chance.pick((1, 2, 2)) + ["decode"] * chance.pick((1, 2, 2))
    both = chance.happens(0.02)
    kinds: list[tuple[str, ...]] = [("prefill", "decode") if both else (role,) for role in roles]
    num_tokens = chance.pick((44, 80, 128, 200))
    page_sizes = chance.pick(((4,), (4,), (2, 4), (4, 8), (2, 4, 8)))
    for index, kind in enumerate(kinds):
        page_size = chance.pick(page_sizes)
        world.start(
            WorkerSpec(
                id=f"w{index}",
                roles=kind,
                page_size=page_size,
                num_pages=ceil(num_tokens / page_size),
                max_step_tokens=chance.pick((8, 16, 32, 64)),
                max_rows=chance.pick((2, 4, 8, 8)),
                clock_offset_s=chance.between(0.0, 1000.0),
            )
        )
    return world


def draw_workload(chance: Chance) -> WorkloadRates:
    """What the clients are like."""
    return WorkloadRates(
        num_bursts=chance.whole(2, 10),
        from_s=chance.pick((0.02, 0.15, 0.15, 0.15)),  # pairs prove themselves before, or while calls come
        over_s=chance.pick((0.3, 1.0, 2.0)),
        short=chance.pick((0.0, 0.05, 0.2)),
        leave=chance.pick((0.0, 0.05, 0.2)),
        long=chance.pick((0.0, 0.0, 0.0, 0.5)),
        num_foreign=chance.pick((0, 0, 5, 20)),
    )


def play(world: World, trouble_s: float) -> None:
    """Until every client has its outcome and all that began before `trouble_s` has healed and become quiet."""
    clock = world.clock
    while clock.now < LIMIT_S and (clock.now < trouble_s or world.num_waiting):
        look(world)
    until_s, num_quiet = clock.now + QUIET_S, 0
    while clock.now < until_s and num_quiet < 2:
        look(world)
        num_quiet = num_quiet + 1 if world.quiet else 0
    for worker in world.workers.values():
        worker.engine.core.check_integrity()


def look(world: World) -> None:
    """Let some time pass."""
    world.clock.run(world.clock.now + LOOK_S)
    world.router.check_integrity()


def count_leaks(world: World, report: Report) -> None:
    """In the end nobody keeps anything of a call."""
    router = world.router
    for worker in world.workers.values():
        report.leaked_pages += worker.num_held_pages
        report.leaked_requests += worker.num_open
    report.leaked_requests += len(router.calls.flows) + len(router.calls.by_attempt)
    report.leaked_requests += sum(len(worker.legs) for worker in router.view)


def count_outcomes(world: World, report: Report) -> None:
    """What the clients got, and what it took."""
    clients, stats = world.clients.values(), world.router.stats
    report.requests = len(clients)
    report.outcomes = Counter(client.outcome for client in clients)
    report.failed = report.outcomes["failed"]
    silences = [client.longest_silence_s(world.tally.struck_s) for client in clients if not client.cancelled]
    report.silences = Counter(round(ceil(s / SILENCE_STEP_S) * SILENCE_STEP_S, 2) for s in silences if s)
    report.wrong_tokens = sum(client.num_wrong for client in clients)
    report.wrong_reads = world.num_wrong_reads
    report.hung = sum(client.waits or client.was_late(LATE_S) for client in clients)
    report.handoffs = stats.handoffs
    report.moved = stats.routes["move"]
    report.reading_handoffs, report.pages_read = world.tally.reading_handoffs, world.tally.pages_read
    report.retried = sum(stats.retries.values())
    report.resumed = stats.resumed
    report.preempted = sum(worker.engine.core.load(0.0).num_preempted for worker in world.workers.values())
    report.refusals = world.tally.handoff_failures
