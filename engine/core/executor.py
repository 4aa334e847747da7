"""The port between the pure core and the hardware. engine.runtime implements it; tests use a fake."""

from typing import Protocol

from engine.core.types import StepOutput, StepPlan


class Executor(Protocol):
    """Runs step plans in order. Launching never waits for the device; collecting does."""

    def launch(self, plan: StepPlan) -> None:
        """Enqueue one step. The caller may launch the next plan before collecting this one."""

    def collect(self) -> StepOutput:
        """Wait for the oldest launched step that was not collected, and return its output."""

    def close(self) -> None:
        """Free the device. No step may be in flight."""
