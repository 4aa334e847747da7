"""How long things take on the machine that the policies' comparison plays: one H200 a worker, an 8B model in bf16.

Constants are measurements of docs/results/h200.md (Llama-3.1-8B shapes, this engine) or follow from the shapes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core.types import KVLayout, StepOutput, StepPlan

PAGE_SIZE = 512
"""The trace's block, so that a page is known or unknown as a whole."""
LAYOUT = KVLayout("llama-8b", num_layers=32, num_kv_heads=8, head_dim=128, page_size=PAGE_SIZE, dtype="bfloat16")
TOKEN_BYTES = LAYOUT.page_bytes / PAGE_SIZE
POOL_PAGES = (60 << 30) // LAYOUT.page_bytes
"""60 GiB of KV, as in the runs of h200.md: 491,520 tokens."""
MAX_STEP_TOKENS = 8192
"""As in h200.md."""
MAX_MODEL_LEN = 140_000
"""The trace's longest request is 126,000 tokens."""

STEP_MS = 4.4
"""A decode step of one row: the weights are read once."""
ROW_MS = 0.008
"""What a row adds besides its KV. With KV at MEMORY_BYTES_PER_S: 4.7 / 7.1 / 9.8 / 15.1 ms at 8 / 64 / 128 / 256 rows
of 1,100 tokens, measured 4.96 / 6.88 / 9.61 / 15.65."""
MEMORY_BYTES_PER_S = 4.25e12
TOKEN_MS = 0.0226
"""A prompt token's products. With PAIRS_MS: 11.7 / 48.0 / 212 ms for 512 / 2,048 / 8,192 tokens, measured 12.6 / 49.8 /
211; and 42,700 tokens/s for 16 prompts of 2,048, measured 42,800."""
PAIRS_MS = 0.8
"""A million pairs of a new token and one that it attends to."""

LINK_BYTES_PER_S = 200e9
"""NIXL between two H200s of one host, once connected: 206 to 243 GB/s."""
HANDOFF_S = 0.002
"""From the last ticket to adopted pages besides moving bytes: re-reading generations, turns of threads. Assumed."""
WIRE_S = 0.0003
"""One way between router and worker. Assumed."""
TURN_S = 30e-6
"""From news to the engine thread's turn. Assumed, as in the simulator."""


@dataclass(slots=True)
class Busy:
    """What one device did. Mutable."""

    prefill_s: float = 0.0
    """Of steps, the part that prompts took."""
    decode_s: float = 0.0


class ClockExecutor:
    """The engine.core.executor.Executor of a device that only takes time. Every drawn token is the same."""

    def __init__(self) -> None:
        self.step_s = 0.0
        """Of the step that was launched last."""
        self.busy = Busy()
        self._launched: deque[tuple[StepPlan, float]] = deque()

    def launch(self, plan: StepPlan) -> None:
        """Take note of how long it will take."""
        prefill_ms, decode_ms = step_ms(plan.starts, plan.num_new)
        self.step_s = (prefill_ms + decode_ms) / 1e3
        self.busy.prefill_s += prefill_ms / 1e3
        self.busy.decode_s += decode_ms / 1e3
        self._launched.append((plan, self.step_s))

    @property
    def ready(self) -> bool:
        """See Executor: whoever collects has waited."""
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        """See Executor: nobody waits."""

    def collect(self) -> StepOutput:
        """The step's rows, with a token where one was to be drawn."""
        plan, took_s = self._launched.popleft()
        return StepOutput(plan.step_id, [7 if sample else -1 for sample in plan.samples], step_s=took_s)

    def close(self) -> None:
        """Nothing to free."""


def step_ms(starts: Sequence[int], num_new: Sequence[int]) -> tuple[float, float]:
    """(prompts', decoding rows') part of one step. Prompts' products hide the weights' read when they are longer."""
    num_rows = len(num_new)
    new = sum(num_new)
    if new == num_rows:
        return 0.0, STEP_MS + num_rows * ROW_MS + sum(starts) * TOKEN_BYTES / MEMORY_BYTES_PER_S * 1e3
    rows = kv = tokens = 0
    pairs = 0.0
    for start, count in zip(starts, num_new, strict=True):
        if count == 1:
            rows, kv = rows + 1, kv + start
        else:
            tokens += count
            pairs += count * (start + count / 2)
    prefill_ms = max(STEP_MS, tokens * TOKEN_MS) + pairs / 1e6 * PAIRS_MS
    return prefill_ms, rows * ROW_MS + kv * TOKEN_BYTES / MEMORY_BYTES_PER_S * 1e3
