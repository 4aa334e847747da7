"""What a load test sends and when: prompts of given lengths at Poisson arrival times, all drawn from one seed."""

import math
import random
from dataclasses import dataclass

WORDS = "river stone window paper morning engine garden silver bridge market winter signal forest copper island letter"


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """Lengths are in tokens, or in words when `text` is set."""

    rate: float = 4.0
    """Requests a second on average; infinite sends all at once."""
    num_requests: int = 100
    input_len: int = 512
    output_len: int = 64
    shared_prefix: int = 0
    """The first tokens of each prompt that it has in common with others of its group."""
    num_prefixes: int = 1
    """Groups of prompts with a common prefix."""
    vocab_size: int = 256
    """Token ids are drawn below this."""
    text: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.num_requests <= 0 or self.input_len <= 0 or self.output_len <= 0:
            raise ValueError("rate, number of requests and lengths must be positive")
        if not 0 <= self.shared_prefix <= self.input_len or self.num_prefixes <= 0:
            raise ValueError("a shared prefix is part of the prompt, and there is at least one")


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request: when to send it (seconds after the start) and what."""

    arrival_s: float
    prompt: list[int] | str
    output_len: int


def plan(config: WorkloadConfig) -> list[PlannedRequest]:
    """The whole load, in order of arrival. The same config gives the same load."""
    rng = random.Random(config.seed)
    prefixes = [_units(rng, config, config.shared_prefix) for _ in range(config.num_prefixes)]
    arrival_s, planned = 0.0, []
    for _ in range(config.num_requests):
        units = rng.choice(prefixes) + _units(rng, config, config.input_len - config.shared_prefix)
        prompt = " ".join(str(unit) for unit in units) if config.text else [int(unit) for unit in units]
        planned.append(PlannedRequest(arrival_s, prompt, config.output_len))
        if math.isfinite(config.rate):
            arrival_s += rng.expovariate(config.rate)
    return planned


def _units(rng: random.Random, config: WorkloadConfig, count: int) -> list[int] | list[str]:
    if config.text:
        return rng.choices(WORDS.split(), k=count)
    return [rng.randrange(config.vocab_size) for _ in range(count)]
