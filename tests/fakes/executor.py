"""The simulator's executor over memory of its own, for tests of the core: it keeps every plan."""

from engine.core.types import StepOutput, StepPlan
from simulator.executor import VOCAB_SIZE, HashExecutor, draw, expected_tokens, kv_of, logprob, slot_value

__all__ = ["VOCAB_SIZE", "FakeExecutor", "draw", "expected_tokens", "kv_of", "logprob", "slot_value"]


class FakeExecutor(HashExecutor):
    """`memory` may be replaced."""

    def __init__(self, page_size: int, num_pages: int, max_rows: int = 1 << 30, max_step_tokens: int = 1 << 30) -> None:
        super().__init__(page_size, [[0] * page_size for _ in range(num_pages)], max_rows, max_step_tokens)
        self.plans: list[StepPlan] = []
        """Every plan ever launched."""
        self.refused: dict[int, str] = {}
        """By id: rows that no token can be drawn for."""

    def launch(self, plan: StepPlan) -> None:
        super().launch(plan)
        self.plans.append(plan)

    def collect(self) -> StepOutput:
        output = super().collect()
        output.refused = self.refused or None
        return output
