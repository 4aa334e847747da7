"""The executor port over a StepRunner and one thread, so that launching never waits: not for a CPU step either."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from engine.core.types import StepOutput, StepPlan
from engine.runtime.runner import PendingStep, StepRunner


class ThreadedExecutor:
    """Implements engine.core.executor.Executor. torch lets go of the interpreter lock while it computes.

    An error of a step is raised by the `collect` of that step; the executor is then good for nothing but `close`.
    """

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="executor", initializer=runner.use_device)
        self._launched: deque[Future[PendingStep]] = deque()

    def launch(self, plan: StepPlan) -> None:
        """See Executor."""
        self._launched.append(self._thread.submit(self._runner.start, plan))

    def collect(self) -> StepOutput:
        """See Executor."""
        return self._launched.popleft().result().wait()

    def close(self) -> None:
        """See Executor. Steps that were launched and not collected still run to their end."""
        self._thread.shutdown(wait=True)
