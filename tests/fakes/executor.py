"""An executor over integers that notices every wrong page, position and token.

The KV of a token is the hash of the token and the KV before it, read through the page table. A drawn token is the
hash of all the row's KV, so one wrong slot anywhere changes it. Steps run when they are collected, as late as the
protocol allows: a page that was given away too early is seen.
"""

from collections import deque
from dataclasses import dataclass, field

from engine.core.types import NewRow, Sampling, StepOutput, StepPlan, TokenLogprob

VOCAB_SIZE = 40


def slot_value(before: int, token: int) -> int:
    return hash((before, token))


def draw(slots: list[int], num_new: int, sampling: Sampling) -> int:
    """The token after the prefix whose KV is `slots`; `num_new` tokens were drawn before it."""
    token = hash((tuple(slots), sampling.seed)) % VOCAB_SIZE
    if num_new < sampling.min_tokens:
        while token in sampling.stop_token_ids:
            token = (token + 1) % VOCAB_SIZE
    return token


def logprob(slots: list[int], token: int) -> TokenLogprob:
    """Any value that depends on the whole prefix and the token."""
    return TokenLogprob(token, -float(hash((tuple(slots), token)) % 1000))


def kv_of(tokens: list[int]) -> list[int]:
    """The KV of a sequence, without pages."""
    slots: list[int] = []
    for token in tokens:
        slots.append(slot_value(slots[-1] if slots else 0, token))
    return slots


def expected_tokens(tokens: list[int], num_prompt: int, sampling: Sampling, max_model_len: int) -> list[int]:
    """All tokens that a request must get after `tokens`, were it alone in the world."""
    known = list(tokens)
    slots = kv_of(known)
    while len(known) < min(num_prompt + sampling.max_tokens, max_model_len):
        num_new = len(known) - num_prompt
        token = draw(slots, num_new, sampling)
        known.append(token)
        slots.append(slot_value(slots[-1], token))
        if token in sampling.stop_token_ids and num_new >= sampling.min_tokens:
            break
    return known[len(tokens) :]


@dataclass
class Row:
    new: NewRow
    tokens: list[int]
    pages: list[int] = field(default_factory=list)


class FakeExecutor:
    """See the module's text. Raises AssertionError when a plan breaks the contract."""

    def __init__(self, page_size: int, num_pages: int, max_rows: int = 1 << 30, max_step_tokens: int = 1 << 30) -> None:
        self.page_size = page_size
        self.max_rows = max_rows
        self.max_step_tokens = max_step_tokens
        self.memory = [[0] * page_size for _ in range(num_pages)]
        self.plans: list[StepPlan] = []
        """Every plan ever launched."""
        self._launched: deque[StepPlan] = deque()
        self._rows: dict[int, Row] = {}
        self._num_known: dict[int, int] = {}
        """Tokens of each row that the planner has seen."""

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def launch(self, plan: StepPlan) -> None:
        for id in plan.removed:
            del self._num_known[id]
        for new in plan.added:
            assert new.id not in self._num_known, "a row was added twice"
            self._num_known[new.id] = len(new.tokens)
        columns = (plan.ids, plan.starts, plan.num_new, plan.samples, plan.feedback)
        assert {len(column) for column in columns} == {len(plan.ids)}, "columns differ in length"
        assert 0 < len(plan.ids) == len(set(plan.ids)), "no row, or one twice"
        assert len(self._num_known) <= self.max_rows and plan.num_tokens <= self.max_step_tokens
        for id, start, num_new, feedback in zip(plan.ids, plan.starts, plan.num_new, plan.feedback, strict=True):
            if feedback:
                assert num_new == 1 and start >= self._num_known[id], "feedback of a token that is known"
            else:
                assert 0 < num_new <= self._num_known[id] - start, "a token that is not known"
        self.plans.append(plan)
        self._launched.append(plan)

    def collect(self) -> StepOutput:
        plan = self._launched.popleft()
        for id in plan.removed:
            del self._rows[id]
        for new in plan.added:
            self._rows[new.id] = Row(new, list(new.tokens))
        for id, pages in plan.new_pages:
            self._rows[id].pages += pages
        output = StepOutput(plan.step_id, [-1] * len(plan.ids), [None] * len(plan.ids), {}, 0.001 * plan.num_tokens)
        for index, id in enumerate(plan.ids):
            self._run(plan, index, self._rows[id], output)
            if plan.samples[index] and id in self._num_known:
                self._num_known[id] += 1
        return output

    def close(self) -> None:
        assert not self._launched, "a step is in flight"

    def read(self, row: Row, position: int) -> int:
        return self.memory[row.pages[position // self.page_size]][position % self.page_size]

    def _run(self, plan: StepPlan, index: int, row: Row, output: StepOutput) -> None:
        start, num_new, sampling = plan.starts[index], plan.num_new[index], row.new.sampling
        for position in range(start, start + num_new):
            before = self.read(row, position - 1) if position else 0
            page = self.memory[row.pages[position // self.page_size]]
            page[position % self.page_size] = slot_value(before, row.tokens[position])
        slots = [self.read(row, position) for position in range(start + num_new)]
        if sampling.num_prompt_logprobs is not None and output.prompt_logprobs is not None:
            output.prompt_logprobs[row.new.id] = [
                logprob(slots[: position + 1], row.tokens[position + 1])
                for position in range(start, min(start + num_new, row.new.num_prompt - 1))
            ]
        if plan.samples[index]:
            assert start + num_new == len(row.tokens), "a token drawn in the middle"
            token = draw(slots, start + num_new - row.new.num_prompt, sampling)
            row.tokens.append(token)
            output.tokens[index] = token
            if sampling.num_logprobs is not None and output.logprobs is not None:
                output.logprobs[index] = logprob(slots, token)
