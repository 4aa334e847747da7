"""What a worker runs before it is ready, on the CPU: real plans through a real executor."""

from collections.abc import Callable, Iterator
from itertools import count

from engine.core.types import StepOutput, StepPlan
from engine.runtime.executor import ThreadedExecutor
from engine.runtime.warmup import ALWAYS, BUDGET_S, WarmUp, warm_up
from tests.unit.runtime.tiny import (
    MAX_LEN,
    MAX_ROWS,
    PAGE_SIZE,
    Planner,
    make_runner,
    new_row,
    recompute_greedy,
    tiny_model,
)

WHAT = WarmUp(PAGE_SIZE, 64, MAX_LEN, 32, (1, 2, 4, 8))


class Recorder:
    """An executor that only keeps the plans."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def launch(self, plan: StepPlan) -> None:
        self.plans.append(plan)

    @property
    def ready(self) -> bool:
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        """Nobody waits."""

    def collect(self) -> StepOutput:
        return StepOutput(0, [])

    def close(self) -> None:
        """Nothing runs."""


def still() -> float:
    return 0.0


def decode_sizes(recorder: Recorder) -> list[int]:
    return [len(plan.ids) for plan in recorder.plans if plan.ids and plan.starts[0] == 1]


def test_afterwards_the_engine_is_as_new() -> None:
    model = tiny_model()
    executor = ThreadedExecutor(make_runner(model))
    warm_up(executor, WHAT)
    planner, prompt = Planner(), [3, 1, 4, 1, 5, 9, 2]
    for id in range(MAX_ROWS):  # every row is free again
        planner.add(new_row(id, prompt))
        planner.extend(id, 0, len(prompt))
    executor.launch(planner.take())
    assert executor.collect().tokens == recompute_greedy(model, prompt, 1) * MAX_ROWS
    executor.close()


def test_prompts_and_decode_steps_stay_within_what_the_engine_can_run() -> None:
    for what in (WHAT, WarmUp(16, 3, 1000, 8192, (1, 2)), WarmUp(128, 1, 4, 8192, (1,)), WarmUp(16, 9, 2, 9, (1,))):
        recorder = Recorder()
        warm_up(recorder, what, still)
        for plan in recorder.plans:
            ends = [start + new for start, new in zip(plan.starts, plan.num_new, strict=True)]
            assert plan.num_tokens <= max(what.max_step_tokens, max(what.sizes))
            assert all(end <= what.max_model_len for end in ends)
            assert all(page < what.num_pages for _, pages in plan.new_pages for page in pages)
            assert all(len(pages) * what.page_size >= end for (_, pages), end in zip(plan.new_pages, ends, strict=True))
        assert not recorder.plans[-1].ids and recorder.plans[-1].removed == recorder.plans[-2].ids


def test_every_size_is_made_while_there_is_time() -> None:
    recorder = Recorder()
    warm_up(recorder, WarmUp(16, 64, 512, 256, (1, 2, 4, 8, 12, 16)), still)
    assert decode_sizes(recorder) == [1, 2, 4, 8, 12, 16]


def test_small_sizes_are_made_even_when_the_time_is_over() -> None:
    ticks: Iterator[int] = count()
    recorder = Recorder()
    warm_up(recorder, WarmUp(16, 64, 512, 256, (1, 2, 4, 8, 12, 16)), lambda: next(ticks) * (BUDGET_S + 1))
    assert decode_sizes(recorder) == [1, 2, 4, ALWAYS]
