"""Moving averages of what the device did, for WorkerLoad."""

from engine.core.types import StepPlan

WEIGHT = 0.2
"""Of the newest step in the moving averages."""


class LoadMeter:
    """Step time and prefill speed of recent steps."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self.prefill_tokens_per_s = 0.0
        """Over steps that mostly computed prompts; 0 before the first one."""
        self.decode_s = 0.0
        """Of the newest step that extended each of its rows by one token; 0 before the first one."""

    def observe(self, plan: StepPlan, step_s: float) -> None:
        """One step was committed; `step_s` is the device's busy time."""
        if step_s <= 0:
            return
        self.step_s = _moved(self.step_s, step_s)
        num_tokens = plan.num_tokens
        if num_tokens == len(plan.ids):
            self.decode_s = step_s
        elif num_tokens > 2 * len(plan.ids):
            self.prefill_tokens_per_s = _moved(self.prefill_tokens_per_s, num_tokens / step_s)


def _moved(average: float, value: float) -> float:
    return value if average == 0 else average + WEIGHT * (value - average)
