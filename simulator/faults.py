"""What goes wrong in one seed: when, to whom, and at which moment of a handoff."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.core.messages import Adopt, Adopted, Drain, Release, Started, TicketIssued
from engine.core.types import token_buffer
from engine.server.inbox import DrainAsked, Received
from engine.server.role import RequestWord
from simulator.chance import Chance
from simulator.stranger import Stranger
from simulator.worker import SimWorker, WorkerSpec
from simulator.workload import random_tokens
from simulator.world import World


@dataclass(frozen=True, slots=True)
class FaultRates:
    """How bad a seed is."""

    num_random: int
    """Faults at times that have nothing to do with what happens."""
    strike: float
    """How often a word about a handoff draws a fault upon the worker that said it, or another."""
    damage: float
    """How often an Adopt arrives with another client's prompt."""
    expire: float
    """How often the lease of a prompt ends while its reader still reads, and its pages get their next owner."""
    abandon: float
    """How often reads fail while they are on their way, and the reader wants the pages for others."""
    drain: float
    """How often a worker is told to drain when it has just adopted a call."""
    until_s: float
    """Nothing begins to go wrong after this."""


def draw_rates(chance: Chance, until_s: float) -> FaultRates:
    """A seed is calm, or some things go wrong, or everything does."""
    return FaultRates(
        num_random=chance.pick((0, 1, 2, 4)),
        strike=chance.pick((0.0, 0.01, 0.03)),
        damage=chance.pick((0.0, 0.02, 0.1)),
        expire=chance.pick((0.0, 0.02, 0.1)),
        abandon=chance.pick((0.0, 0.02, 0.1)),
        drain=chance.pick((0.0, 0.0, 0.05)),
        until_s=until_s,
    )


class Faults:
    """Breaks a world. Whatever it breaks heals by itself: killed workers start again under a new incarnation."""

    def __init__(self, world: World, rates: FaultRates, prefixes: "list[array[int]]", stranger: Stranger) -> None:
        """`prefixes` are shared by prompts, so that one exchanged for another may well be in a cache."""
        self.counts: Counter[str] = Counter()
        """By kind, and by kind and the state that a call on that worker was in."""
        self._world, self._rates, self._prefixes = world, rates, prefixes
        self._stranger = stranger
        self._kinds: tuple[tuple[str, Callable[[SimWorker], None]], ...] = (
            ("kill", self._kill),
            ("stop", self._stop),
            ("stop", self._stop),
            ("lose", self._lose),
            ("stick", self._stick),
            ("part", self._part),
            ("part all", self._part_all),
            ("drain", self._drain),
            ("fail reads", self._fail_reads),
        )
        for _ in range(rates.num_random):
            world.clock.at(world.chance.between(0.02, rates.until_s), self._strike_any)
        world.hooks.said = self._said
        world.hooks.adopt = self._damaged
        world.hooks.left = self._restart_soon

    # ------------------------------------------------------------ when

    def _said(self, worker: SimWorker, word: RequestWord) -> None:
        chance = self._world.chance
        if not isinstance(word, Started | TicketIssued | Adopted) or self._world.clock.now > self._rates.until_s:
            return
        if isinstance(word, TicketIssued) and word.last:
            self._disturb(worker, word.id)
        if isinstance(word, Adopted) and chance.happens(self._rates.drain):
            self._count("drain")
            self._drain(worker)
        if not chance.happens(self._rates.strike):
            return
        if chance.happens(0.3):
            worker = chance.pick(list(self._world.workers.values()))
        self._world.clock.after(chance.between(0.0, 0.004), lambda: self._strike(worker))

    def _strike_any(self) -> None:
        workers = list(self._world.workers.values())
        if workers:
            self._strike(self._world.chance.pick(workers))

    def _strike(self, worker: SimWorker) -> None:
        if self._world.clock.now > self._rates.until_s or not worker.alive:
            return
        kind, action = self._kinds[0] if worker.stopped else self._world.chance.pick(self._kinds)
        self._count(kind)
        known = self._world.router.view.workers.get(worker.key)
        calls = self._world.router.calls.by_attempt
        for id in known.legs if known else ():
            self.counts[f"{kind} while {calls[id].state}"] += 1
        action(worker)

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1
        self._world.tally.struck_s = min(self._world.tally.struck_s, self._world.clock.now)

    def _disturb(self, worker: SimWorker, id: int) -> None:
        """All of prompt `id` is there to be read: the moment when it hurts most to lose pages at either end."""
        if self._world.chance.happens(self._rates.expire):
            self._expire(worker, id)
        if self._world.chance.happens(self._rates.abandon):
            self._abandon(worker, id)

    # ------------------------------------------------------------ what

    def _kill(self, worker: SimWorker) -> None:
        self._world.kill(worker, router_hears_in_s=self._world.chance.pick((0.001, 0.05, 0.3)))
        self._restart_soon(worker.spec)

    def _restart_soon(self, spec: WorkerSpec) -> None:
        self._world.clock.after(self._world.chance.pick((0.01, 0.1, 0.4)), lambda: self._restart(spec))

    def _restart(self, spec: WorkerSpec) -> None:
        self._world.start(spec)

    def _drain(self, worker: SimWorker) -> None:
        """`baton drain`, which the router passes on, or SIGTERM. Its time may be too short for what it has."""
        chance, session = self._world.chance, self._world.sessions.get(worker.key)
        grace_s = chance.pick((0.05, 0.5, 5.0))
        if session is not None and chance.happens(0.5):
            session.send(Drain(grace_s))
        else:
            worker.engine.post(DrainAsked(grace_s))

    def _fail_reads(self, worker: SimWorker) -> None:
        """The network says that what is read from that worker fails, and lets the bytes land all the same."""
        self._world.network.fail_reads(worker.key)

    def _stop(self, worker: SimWorker) -> None:
        chance = self._world.chance
        worker.stop()
        self._world.clock.after(chance.pick((0.01, 0.05, 0.2, 0.7, 1.5)), worker.resume)
        if chance.happens(0.2):
            self._world.clock.after(chance.between(0.0, 0.5), lambda: self._lose(worker))

    def _lose(self, worker: SimWorker) -> None:
        chance = self._world.chance
        self._world.lose_session(worker, chance.pick((0.0, 0.01, 0.3)), chance.pick((0.0, 0.01, 0.6)))

    def _stick(self, worker: SimWorker) -> None:
        session = self._world.sessions.get(worker.key)
        if session is not None:
            session.stick(self._world.chance.pick((0.05, 0.4, 0.9)))

    def _part(self, worker: SimWorker) -> None:
        """No byte between this worker and another, both ways."""
        self._block(worker, [self._world.chance.pick(list(self._world.workers.values()))])

    def _part_all(self, worker: SimWorker) -> None:
        """No byte between this worker and any other."""
        self._block(worker, list(self._world.workers.values()))

    def _expire(self, worker: SimWorker, id: int) -> None:
        """A lease ends early, on slow links, where others wait for pages: they are written while they are read."""
        world, session = self._world, self._world.sessions.get(worker.key)
        if session is None:
            return
        self._count("expire")
        self._block(worker, list(world.workers.values()), world.chance.between(0.005, 0.05))
        worker.engine.post(Received(session.key, Release(id)))
        self._crowd(worker)

    def _abandon(self, worker: SimWorker, id: int) -> None:
        """Slow reads are said to fail; while their bytes still land, others ask for the pages that they land in."""
        world, flow = self._world, self._world.router.calls.by_attempt.get(id)
        if flow is None or flow.attempt is None or flow.attempt.decode.worker.key not in world.sessions:
            return
        reader = world.sessions[flow.attempt.decode.worker.key].worker
        self._count("abandon")
        self._block(worker, [reader], world.chance.between(0.005, 0.05))
        fail_s = world.chance.between(0.001, 0.005)
        world.clock.after(fail_s, lambda: self._fail_reads(worker))
        world.clock.after(fail_s + world.chance.between(0.0, 0.005), lambda: self._crowd(reader))

    def _crowd(self, worker: SimWorker) -> None:
        """Others want pages there."""
        chance = self._world.chance
        if not worker.alive:
            return
        for _ in range(chance.whole(1, 4)):
            self._stranger.ask(worker, random_tokens(chance, chance.whole(4, 32)))

    def _block(self, worker: SimWorker, others: list[SimWorker], for_s: float = 0.0) -> None:
        world = self._world
        until_s = world.clock.now + (for_s or world.chance.pick((0.05, 0.1, 0.2, 0.5, 1.2, 4.0)))
        for other in others:
            for pair in ((worker.key, other.key), (other.key, worker.key)):
                world.blocked[pair] = max(until_s, world.blocked.get(pair, 0.0))

    def _damaged(self, command: Adopt) -> Adopt:
        """The Adopt that arrives. It may name a prompt that starts like another client's."""
        chance = self._world.chance
        tokens = command.request.tokens
        others = [p for p in self._prefixes if len(p) <= len(tokens) and p != tokens[: len(p)]]
        if not others or not chance.happens(self._rates.damage):
            return command
        prefix = chance.pick(others)
        self.counts["damage"] += 1
        return Adopt(replace(command.request, tokens=token_buffer([*prefix, *tokens[len(prefix) :]])))
