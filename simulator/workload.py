"""The calls of one seed: bursts, shared prefixes, equal prompts, tenants, short deadlines, clients that leave."""

from array import array
from dataclasses import dataclass, replace

from engine.core.types import Sampling, token_buffer
from router.api import GenerateCall
from simulator.chance import Chance
from simulator.executor import VOCAB_SIZE
from simulator.stranger import Stranger
from simulator.world import World

PATIENT_S = 120.0
"""Longer than any seed runs: such a call may not fail, and a lease that waits for its end is a leak."""
MAX_PROMPT, MAX_NEW = 32, 10
MAX_LEN = MAX_PROMPT + MAX_NEW
"""Fits into any pool."""
NUM_POPULAR = 4


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
    long: float
    """Share of calls that may go on until MAX_LEN: when a worker drains they still decode."""
    num_foreign: int
    """Requests that workers get from another router meanwhile: pages that are freed have a next owner at once."""


def draw_prefixes(chance: Chance) -> "list[array[int]]":
    """What prompts begin with."""
    lengths = (chance.whole(4, 9), chance.whole(8, 20), chance.whole(8, 20))
    return [random_tokens(chance, length) for length in lengths]


def random_tokens(chance: Chance, count: int) -> "array[int]":
    """Tokens that no one else has."""
    return token_buffer([chance.whole(0, VOCAB_SIZE - 1) for _ in range(count)])


class Workload:
    """Sends the calls and cancels some."""

    def __init__(self, world: World, rates: WorkloadRates, prefixes: "list[array[int]]", stranger: Stranger) -> None:
        self._world, self._rates, self._prefixes = world, rates, prefixes
        self._popular: list[array[int]] = []
        """Prompts that come again and again: a cache that holds wrong pages shows."""
        self._stranger = stranger
        self._next_key = 1
        for _ in range(rates.num_bursts):
            world.clock.at(world.chance.between(rates.from_s, rates.over_s), self._burst)
        for _ in range(rates.num_foreign):
            world.clock.at(world.chance.between(rates.from_s, 2 * rates.over_s), self._foreign)

    def _burst(self) -> None:
        chance = self._world.chance
        tokens = self._prompt()
        for _ in range(chance.pick((1, 2, 4, 8))):
            if chance.happens(0.8):
                tokens = self._prompt()
            self._ask(tokens, num_choices=chance.pick((1, 1, 1, 2, 4)))

    def _prompt(self) -> "array[int]":
        chance = self._world.chance
        if self._popular and chance.happens(0.4):
            return chance.pick(self._popular)
        prefix = chance.pick(self._prefixes) if chance.happens(0.7) else token_buffer()
        rest = chance.whole(1, MAX_PROMPT - len(prefix))
        prompt = prefix + random_tokens(chance, rest)
        if len(self._popular) < NUM_POPULAR:
            self._popular.append(prompt)
        return prompt

    def _ask(self, tokens: "array[int]", num_choices: int) -> None:
        """One request for so many answers to one prompt (n): as many calls, which end together when the client goes."""
        chance = self._world.chance
        usual = chance.pick((1, *5 * (2,), *5 * (3,), 6, 6, MAX_NEW))
        sampling = Sampling(
            max_tokens=MAX_LEN - len(tokens) if chance.happens(self._rates.long) else usual,
            min_tokens=chance.pick((0, 0, 3)),
            stop_token_ids=chance.pick(((), (7,), (3, 7, 11, 19))),
            num_logprobs=chance.pick((None, None, 0)),
            num_prompt_logprobs=0 if chance.happens(0.03) else None,
        )
        short = chance.happens(self._rates.short)
        timeout_s = chance.pick((0.02, 0.1, 0.4)) if short else PATIENT_S
        tenant, priority = chance.pick(("a", "a", "b")), chance.pick((0, 0, 0, 1))
        keys = range(self._next_key, self._next_key + num_choices)
        self._next_key = keys.stop
        for key in keys:
            own = replace(sampling, seed=chance.whole(0, 1 << 30))
            self._world.call(key, GenerateCall(f"call-{key}", tokens[:], own, timeout_s, tenant, priority))
        if chance.happens(self._rates.leave):
            self._world.clock.after(chance.delay_s(0.01, 0.5, 0.3), lambda: self._leave(keys))

    def _leave(self, keys: range) -> None:
        for key in keys:
            self._world.cancel(key)

    def _foreign(self) -> None:
        workers = list(self._world.workers.values())
        if workers:
            self._stranger.ask(self._world.chance.pick(workers), self._prompt())
