"""The executor port over a StepRunner and two threads: launching never waits, not for a CPU step either, and who wants
to do something else until a step ends is woken then.

With several ranks there is a runner and a thread for each, on a device of its own. How an error ends:

    a rank's thread raises    the other ranks' waits are ended from the host (Ranks.abort), here and on their devices
    a rank's device fails     that rank's thread raises at its next launch, or `collect` does for it; until then the
                              other devices wait, at the longest for engine.kernels.peer.PATIENCE_NS, then fail too
    the process dies          all ranks are of one process

In each case `collect` raises, and never returns what was computed without some rank: it waits for all of them, and what
ends the waits of a step that failed may end those of the step before it, which is then worthless too.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from engine.core.errors import RankLost
from engine.core.types import StepOutput, StepPlan
from engine.runtime.runner import PendingStep, StepRunner


class ThreadedExecutor:
    """Implements engine.core.executor.Executor. torch lets go of the interpreter lock while it computes.

    An error of a step is raised by the `collect` of that step; the executor is then good for nothing but `close`.
    """

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="executor", initializer=runner.use_device)
        self._steps = _Steps(runner.use_device)

    def launch(self, plan: StepPlan) -> None:
        """See Executor."""
        started = self._thread.submit(self._runner.start, plan)
        self._steps.add(lambda: started.result().wait())

    def collect(self) -> StepOutput:
        """See Executor."""
        return self._steps.collect()

    @property
    def ready(self) -> bool:
        """See Executor."""
        return self._steps.ready

    def when_ready(self, call: Callable[[], None]) -> None:
        """See Executor."""
        self._steps.wake = call
        self._runner.when_compiled(call)

    def close(self) -> None:
        """See Executor. Steps that were launched and not collected still run to their end."""
        self._thread.shutdown(wait=True)
        self._steps.close()
        self._runner.close()


class _Steps:
    """Launched steps, whose ends a thread awaits in order."""

    def __init__(self, use_device: Callable[[], None]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="step-end", initializer=use_device)
        self._ends: deque[Future[StepOutput]] = deque()
        self.wake: Callable[[], None] = lambda: None

    def add(self, wait: Callable[[], StepOutput]) -> None:
        """`wait` returns the next step's output, or raises."""
        end = self._thread.submit(wait)
        end.add_done_callback(lambda _: self.wake())
        self._ends.append(end)

    def collect(self) -> StepOutput:
        """Of the oldest step."""
        return self._ends.popleft().result()

    @property
    def ready(self) -> bool:
        """The oldest step has ended."""
        return bool(self._ends) and self._ends[0].done()

    def close(self) -> None:
        """Wait for all of them."""
        self._thread.shutdown(wait=True)


class RankedExecutor:
    """Implements engine.core.executor.Executor over the ranks of one worker: all run each plan, the first one answers.

    An error of any rank is raised by the `collect` of that step; the executor is then good for nothing but `close`.
    """

    def __init__(self, runners: Sequence[StepRunner], abort: Callable[[], None]) -> None:
        """`abort` is Ranks.abort."""
        self._runners = runners
        self._abort = abort
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"executor-{rank}", initializer=runner.use_device)
            for rank, runner in enumerate(runners)
        ]
        self._steps = _Steps(runners[0].use_device)
        self._later: deque[list[Future[PendingStep]]] = deque()
        """Launched, and maybe not ended."""
        self._aborted = False
        """Set before `abort` is called: a step that ended and finds it unset was not touched by it."""

    def launch(self, plan: StepPlan) -> None:
        """See Executor."""
        ranks = zip(self._threads, self._runners, strict=True)
        self._later.append([thread.submit(self._start, runner, plan) for thread, runner in ranks])
        self._steps.add(self._end)

    def collect(self) -> StepOutput:
        """See Executor."""
        return self._steps.collect()

    @property
    def ready(self) -> bool:
        """See Executor."""
        return self._steps.ready

    def when_ready(self, call: Callable[[], None]) -> None:
        """See Executor."""
        self._steps.wake = call
        self._runners[0].when_compiled(call)  # all ranks have one compiler

    def _end(self) -> StepOutput:
        steps = self._later.popleft()
        _raise_errors(steps)
        first, *others = [step.result() for step in steps]
        output = first.wait()
        for other in others:
            other.stopwatch.wait()
        if self._aborted:
            for later in list(self._later):
                _raise_errors(later)
            raise RankLost("a rank of this worker failed while the step ran")
        return output

    def close(self) -> None:
        """See Executor. Steps that were launched and not collected still run to their end."""
        for thread in self._threads:
            thread.shutdown(wait=True)
        self._steps.close()
        for runner in self._runners:
            runner.close()
        self._abort()  # after the graphs: NCCL waits for the end of those that hold its kernels

    def _start(self, runner: StepRunner, plan: StepPlan) -> PendingStep:
        started = False
        try:
            pending = runner.start(plan)
            started = True
        finally:
            if not started:
                self._aborted = True
                self._abort()
        return pending


def _raise_errors(steps: Sequence[Future[PendingStep]]) -> None:
    """What a rank's thread raised, the reason before its consequences; waits until all have launched."""
    errors = [error for step in steps if (error := step.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, RankLost)), errors[0])
