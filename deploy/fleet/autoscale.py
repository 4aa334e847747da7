"""How many workers a pool should have, from how hard it works. Pure: time is an argument.

What is measured becomes one number a pool, its pressure: 1 is as much as its workers should have, 2 twice that. A pool
grows when pressure stays above 1, and shrinks when it would stay below `low` with one worker less. Between the two
nothing happens (hysteresis), nor for `cooldown_s` after a change: so under a load that does not change, the number of
workers does not go back and forth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil


@dataclass(frozen=True, slots=True)
class Bounds:
    """Workers of one pool: so many at least and at most."""

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Objectives:
    """What the workers are for, and what counts as too much for them."""

    ttft_s: float = 1.0
    itl_s: float = 0.1
    attainment: float = 0.95
    """The share of requests (of gaps between tokens) that shall be within these."""
    max_wait_share: float = 0.5
    """Of `ttft_s`: what prompts that are queued may have to wait, by the workers' measured speed."""
    max_busy: float = 0.8
    """The share of time that prefill workers compute, by the tokens that come in."""
    max_pages: float = 0.8
    """The share of a decode worker's pages that requests hold."""


@dataclass(frozen=True, slots=True)
class ScaleConfig:
    """When a pool may change, and by how much."""

    low: float = 0.6
    up_after_s: float = 5.0
    down_after_s: float = 60.0
    cooldown_s: float = 30.0
    max_step: int = 2
    """Workers that one decision adds; it takes one away."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one pool did since the sample before, over all routers."""

    num_ready: int
    queued_tokens: int = 0
    tokens_per_s: float = 0.0
    """Prompt tokens that one worker computes in a second; 0 while nothing was measured."""
    new_tokens_per_s: float = 0.0
    """Prompt tokens that came in and had to be computed."""
    pages_used: float = 0.0
    """Share of the pool's pages that requests hold."""
    num_timed: int = 0
    """Requests (or gaps) that were timed."""
    num_late: int = 0
    """Of them, those beyond the objective."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pool should have instead, and why, in words for the log."""

    pool: str
    count: int
    reason: str


def pressure(role: str, sample: Sample, objectives: Objectives) -> tuple[float, str]:
    """How hard a pool of that role works, and by which measure."""
    readings = [(_lateness(sample, objectives), "requests are late" if role == "prefill" else "tokens are late")]
    if role == "prefill":
        speed = sample.tokens_per_s * max(sample.num_ready, 1)
        if speed > 0:
            wait_s = sample.queued_tokens / speed
            readings.append((wait_s / (objectives.max_wait_share * objectives.ttft_s), "prompts wait"))
            readings.append((sample.new_tokens_per_s / speed / objectives.max_busy, "workers are busy"))
    else:
        readings.append((sample.pages_used / objectives.max_pages, "pages are held"))
    return max(readings)


def _lateness(sample: Sample, objectives: Objectives) -> float:
    """At most 2: how late requests are says nothing of how many workers are missing."""
    if not sample.num_timed:
        return 0.0
    return min(sample.num_late / sample.num_timed / max(1.0 - objectives.attainment, 1e-9), 2.0)


@dataclass(slots=True)
class _State:
    """What one pool has shown so far."""

    high_since_s: float | None = None
    low_since_s: float | None = None
    frozen_until_s: float = float("-inf")


@dataclass(slots=True)
class Autoscaler:
    """Keeps what has lasted how long. `bounds` names the pools that it may change."""

    bounds: Mapping[str, Bounds]
    config: ScaleConfig = ScaleConfig()
    _states: dict[str, _State] = field(default_factory=dict)

    def decide(self, pool: str, count: int, sample: Sample, reading: tuple[float, str], now: float) -> Decision | None:
        """`count` is wanted now and `reading` the pressure. None: leave it."""
        bounds, state = self.bounds.get(pool), self._states.setdefault(pool, _State())
        if bounds is None or sample.num_ready != count or now < state.frozen_until_s:
            state.high_since_s = state.low_since_s = None  # what a pool in motion shows is no reason to move it
            return None
        value, measure = reading
        lasted_high = _lasted(value > 1.0, state.high_since_s, now)
        shrunk = value * count / (count - 1) if count > 1 else float("inf")
        lasted_low = _lasted(shrunk < self.config.low, state.low_since_s, now)
        state.high_since_s, state.low_since_s = lasted_high[0], lasted_low[0]
        wanted, why = count, measure
        if lasted_high[1] >= self.config.up_after_s:
            wanted = min(ceil(count * value), count + self.config.max_step, bounds.max)
        elif lasted_low[1] >= self.config.down_after_s:
            wanted, why = max(count - 1, bounds.min), "one less is enough"
        if wanted == count:
            return None
        self._states[pool] = _State(frozen_until_s=now + self.config.cooldown_s)
        return Decision(pool, wanted, f"pressure {value:.2f}: {why}")


def _lasted(holds: bool, since_s: float | None, now: float) -> tuple[float | None, float]:
    """Since when something holds, and for how long: less than nothing when it does not."""
    if not holds:
        return None, -1.0
    since_s = now if since_s is None else since_s
    return since_s, now - since_s
