"""The first steps of a worker, before anybody can ask for one: kernels compile, libraries load, graphs are captured.

They are plans like any other, run by the executor on pages that nobody owns yet: what they write there is written over
by the first owner. Prompts come first, new and over a cached prefix, in lengths that take each way through a layer;
then decode steps of the graphs' sizes, small ones always, the others while there is time, as are prompts of the graphs'
lengths, new and behind a page. What is left out is made when it is needed.
"""

import logging
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core.executor import Executor
from engine.core.types import NewRow, Sampling, StepPlan

logger = logging.getLogger(__name__)

PROMPTS = (7, 20, 40, 300)
"""New tokens; the longest step comes on top. Products change their kernels after 16, 32 and 64 rows."""
EXTENDS = (7, 300)
ALWAYS = 8
"""Decode steps up to this size are made whatever the time."""
BUDGET_S = 12.0
DRAWN = Sampling(temperature=0.8, top_p=0.9, top_k=50, seed=1)
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the engine can run."""

    page_size: int
    num_pages: int
    max_model_len: int
    max_step_tokens: int
    sizes: Sequence[int]
    """Rows of decode steps, ascending."""
    prompt_sizes: Sequence[int] = ()
    """Tokens of prompts that run as graphs, ascending."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt that one step can compute and the pages hold."""
        return max(1, min(self.max_step_tokens, self.max_model_len - 1, self.num_pages * self.page_size))


class _Steps:
    """Runs plans one at a time, each with rows of its own."""

    def __init__(self, executor: Executor, page_size: int) -> None:
        self._executor = executor
        self._page_size = page_size
        self._rows: list[int] = []
        """Of the step before."""
        self._num_steps = 0

    def run(self, num_rows: int, start: int, num_new: int, sampling: Sampling = GREEDY) -> None:
        """One step of equal rows on the same pages."""
        ids, end = list(range(num_rows)), start + num_new
        plan = StepPlan(self._num_steps, removed=self._rows)
        plan.added = [NewRow(id, array("i", [0] * end), end, sampling) for id in ids]
        plan.new_pages = [(id, list(range(-(-end // self._page_size)))) for id in ids]
        plan.ids = ids
        plan.starts, plan.num_new = [start] * num_rows, [num_new] * num_rows
        plan.samples, plan.feedback = [True] * num_rows, [False] * num_rows
        self._execute(plan)
        self._rows = ids

    def end(self) -> None:
        """Forget the last rows."""
        self._execute(StepPlan(self._num_steps, removed=self._rows))

    def _execute(self, plan: StepPlan) -> None:
        self._executor.launch(plan)
        self._executor.collect()
        self._num_steps += 1


def warm_up(executor: Executor, what: WarmUp, clock: Callable[[], float] = time.monotonic) -> None:
    """Run it, in BUDGET_S or a little more; the executor is left as if nothing had been run."""
    begin_s = clock()
    steps = _Steps(executor, what.page_size)
    longest = what.longest
    prompts = sorted({min(length, longest) for length in (*PROMPTS, longest)})
    for length in prompts:
        steps.run(1, 0, length)
    for length in EXTENDS:
        if what.page_size + length <= longest:
            steps.run(1, what.page_size, length)
    steps.run(1, 0, prompts[0], DRAWN)
    logger.info("warm-up: prompts of %s tokens after %.1f s", ", ".join(map(str, prompts)), clock() - begin_s)
    made = []
    for size in what.sizes:
        if longest < 2 or (size > ALWAYS and clock() - begin_s > BUDGET_S):
            break
        steps.run(size, 1, 1)
        made.append(size)
    lengths = [length for length in what.prompt_sizes if what.page_size + length <= longest]
    for num_done, length in enumerate(lengths):
        if clock() - begin_s > BUDGET_S:
            logger.info("warm-up: time for %d of %d prompt sizes", num_done, len(lengths))
            break
        steps.run(1, 0, length)
        steps.run(1, what.page_size, length)
    steps.end()
    logger.info("warm-up: %d of %d decode sizes after %.1f s", len(made), len(what.sizes), clock() - begin_s)
