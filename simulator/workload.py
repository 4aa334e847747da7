"""The calls of one seed: bursts, shared prefixes, equal prompts, tenants, short deadlines, clients that leave."""

from array import array
from dataclasses import dataclass

from engine.core.messages import Generate
from engine.core.types import Request, Sampling, token_buffer
from engine.server.inbox import Received, SessionOpened
from router.api import GenerateCall
from simulator.chance import Chance
from simulator.executor import VOCAB_SIZE
from simulator.world import World

PATIENT_S = 120.0
"""Longer than any seed runs: such a call may not fail, and a lease that waits for its end is a leak."""
MAX_PROMPT, MAX_NEW = 32, 10
NUM_POPULAR = 4
FOREIGN_SESSION = -1


@dataclass(frozen=True, slots=True)
class WorkloadRates:
    """What the clients of a seed are like."""

    num_bursts: int
    from_s: float
    over_s: float
    short: float
    """Share of calls with a deadline that they may miss."""
    leave: float
    """Share of calls whose client goes away."""
    num_foreign: int
    """Requests that workers get from another router meanwhile: pages that are freed have a next owner at once."""


def draw_prefixes(chance: Chance) -> "list[array[int]]":
    """What prompts begin with."""
    lengths = (chance.whole(4, 9), chance.whole(8, 20), chance.whole(8, 20))
    return [token_buffer([chance.whole(0, VOCAB_SIZE - 1) for _ in range(length)]) for length in lengths]


class Workload:
    """Sends the calls and cancels some."""

    def __init__(self, world: World, rates: WorkloadRates, prefixes: "list[array[int]]") -> None:
        self._world, self._rates, self._prefixes = world, rates, prefixes
        self._popular: list[array[int]] = []
        """Prompts that come again and again: a cache that holds wrong pages shows."""
        self._met: set[str] = set()
        """Workers that the other router has a session with."""
        self._next_key = 1
        for _ in range(rates.num_bursts):
            world.clock.at(world.chance.between(rates.from_s, rates.over_s), self._burst)
        for _ in range(rates.num_foreign):
            world.clock.at(world.chance.between(rates.from_s, 2 * rates.over_s), self._foreign)

    def _burst(self) -> None:
        chance = self._world.chance
        tokens = self._prompt()
        for _ in range(chance.pick((1, 1, 2, 4))):
            if chance.happens(0.6):
                tokens = self._prompt()  # else the same prompt again, with another seed: n > 1
            self._send(tokens)

    def _prompt(self) -> "array[int]":
        chance = self._world.chance
        if self._popular and chance.happens(0.4):
            return chance.pick(self._popular)
        prefix = chance.pick(self._prefixes) if chance.happens(0.7) else token_buffer()
        rest = chance.whole(1, MAX_PROMPT - len(prefix))
        prompt = token_buffer([*prefix, *(chance.whole(0, VOCAB_SIZE - 1) for _ in range(rest))])
        if len(self._popular) < NUM_POPULAR:
            self._popular.append(prompt)
        return prompt

    def _send(self, tokens: "array[int]") -> None:
        chance, key = self._world.chance, self._next_key
        self._next_key += 1
        sampling = Sampling(
            max_tokens=chance.pick((1, 2, 4, MAX_NEW, MAX_NEW)),
            min_tokens=chance.pick((0, 0, 3)),
            seed=chance.whole(0, 1 << 30),
            stop_token_ids=chance.pick(((), (7,), (3, 7, 11, 19))),
            num_logprobs=chance.pick((None, None, 0)),
            num_prompt_logprobs=0 if chance.happens(0.05) else None,
        )
        short = chance.happens(self._rates.short)
        timeout_s = chance.pick((0.02, 0.1, 0.4)) if short else PATIENT_S
        tenant = chance.pick(("a", "a", "b"))
        call = GenerateCall(f"call-{key}", tokens[:], sampling, timeout_s, tenant, chance.pick((0, 0, 0, 1)))
        self._world.call(key, call)
        if chance.happens(self._rates.leave):
            self._world.clock.after(chance.delay_s(0.01, 0.5, 0.3), lambda: self._world.cancel(key))

    def _foreign(self) -> None:
        chance = self._world.chance
        workers = list(self._world.workers.values())
        if not workers:
            return
        worker = chance.pick(workers)
        if worker.key not in self._met:
            self._met.add(worker.key)
            worker.engine.post(SessionOpened(FOREIGN_SESSION))
        tokens, now = self._prompt(), worker.time()
        sampling = Sampling(max_tokens=chance.whole(1, MAX_NEW), seed=self._next_key)
        request = Request(self._world.chance.whole(1, 1 << 40), tokens, len(tokens), sampling, now, now + PATIENT_S)
        worker.engine.post(Received(FOREIGN_SESSION, Generate(request)))
