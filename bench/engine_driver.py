"""One engine in this process, driven as a worker drives it, with the times of what it gives back."""

import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from engine.core.types import Request, Sampling
from engine.runtime.build import Engine


@dataclass(slots=True)
class Timeline:
    """Seconds since the requests were submitted."""

    first_token_s: list[float] = field(default_factory=list)
    """Of each request, in the order they came."""
    full_step_s: list[float] = field(default_factory=list)
    """When each step that gave a token to every request came back."""
    end_s: float = 0.0
    tokens: list[list[int]] = field(default_factory=list)
    """Drawn tokens of each request."""
    full_step_busy_s: list[float] = field(default_factory=list)
    """That the device had worked until then, since the requests were submitted."""

    @property
    def busy_share(self) -> float | None:
        """What the device worked of the time in which all requests decode. None when there were too few steps."""
        if len(self.full_step_busy_s) < 3:
            return None
        busy_s = self.full_step_busy_s[-1] - self.full_step_busy_s[1]
        return busy_s / (self.full_step_s[-1] - self.full_step_s[1])

    @property
    def prefill_s(self) -> float:
        """Until every request had its first token."""
        return max(self.first_token_s)

    @property
    def step_s(self) -> float:
        """Median time of a step in which all requests decode."""
        return median_gap(self.full_step_s)


def median_gap(times_s: Sequence[float]) -> float:
    """The median distance of neighbours."""
    gaps = sorted(after - before for before, after in pairwise(times_s))
    return gaps[len(gaps) // 2]


class EngineDriver:
    """Runs batches of greedy requests to their end."""

    def __init__(self, engine: Engine) -> None:
        self._core = engine.core
        self._num_requests = 0

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Timeline:
        """Submit all prompts at once and draw exactly `num_new` tokens for each."""
        first, timeline = self._num_requests, Timeline()
        self._num_requests += len(prompts)
        sampling = Sampling(max_tokens=num_new, temperature=0.0)
        timeline.tokens = [[] for _ in prompts]
        start_s = time.perf_counter()
        for id, prompt in enumerate(prompts, first):
            self._core.submit(Request(id, array("i", prompt), len(prompt), sampling, 0.0, math.inf))
        num_finished, busy_s = 0, 0.0
        while num_finished < len(prompts):
            result = self._core.step(time.perf_counter() - start_s)
            now_s = time.perf_counter() - start_s
            busy_s += result.step_s
            for id, token in zip(result.ids, result.tokens, strict=True):
                drawn = timeline.tokens[id - first]
                if not drawn:
                    timeline.first_token_s.append(now_s)
                drawn.append(token)
            if len(result.ids) == len(prompts):
                timeline.full_step_s.append(now_s)
                timeline.full_step_busy_s.append(busy_s)
            num_finished += len(result.finished)
        timeline.end_s = time.perf_counter() - start_s
        return timeline
