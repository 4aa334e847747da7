"""The port between the pure core and the hardware. engine.runtime implements it; tests use a fake."""

from collections.abc import Callable
from typing import Protocol

from engine.core.types import StepOutput, StepPlan


class Executor(Protocol):
    """Runs step plans in order. Launching never waits for the device; collecting does."""

    def launch(self, plan: StepPlan) -> None:
        """Enqueue one step. The caller may launch the next plan before collecting this one."""

    def collect(self) -> StepOutput:
        """Wait for the oldest launched step that was not collected, and return its output."""

    @property
    def ready(self) -> bool:
        """Whether `collect` would not wait: the oldest launched step has ended, well or not."""

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call it whenever a step has ended, or a grammar that requests wait for is compiled, from any thread: it may
        only wake somebody. To be said before launches."""

    def close(self) -> None:
        """Free the device. No step may be in flight."""
