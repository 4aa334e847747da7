"""A model without a device that notices every wrong page, position and token.

The KV of a token is the hash of the token and of the KV before it, read through the page table. A drawn token is the
hash of all the row's KV, so one wrong slot anywhere changes it. `expected_tokens` says what a request must get from its
tokens alone. A launched step runs when it is collected, as late as the protocol allows, unless `early` says at launch.

With memory for V the KV of a token is written twice: the next token is computed from K, and tokens are drawn from V.
"""

from collections import deque
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, field

from engine.core.types import NewRow, Sampling, StepOutput, StepPlan, TokenLogprob

VOCAB_SIZE = 40


def slot_value(before: int, token: int) -> int:
    """The KV of a token after the one whose KV is `before` (0 for none). A signed 64-bit integer."""
    return hash((before, token))


def draw(slots: list[int], num_new: int, sampling: Sampling) -> int:
    """The token after the prefix whose KV is `slots`; `num_new` tokens were drawn before it."""
    token = hash((tuple(slots), sampling.seed)) % VOCAB_SIZE
    if num_new < sampling.min_tokens and sampling.grammar is None:  # the end of a grammar comes before
        while token in sampling.stop_token_ids:
            token = (token + 1) % VOCAB_SIZE
    return token


def logprob(slots: list[int], token: int) -> TokenLogprob:
    """Any value that depends on the whole prefix and the token."""
    return TokenLogprob(token, -float(hash((tuple(slots), token)) % 1000))


def kv_of(tokens: list[int]) -> list[int]:
    """The KV of a sequence, without pages."""
    before = 0
    return [before := hash((before, token)) for token in tokens]  # slot_value, without the price of a call


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


@dataclass(slots=True)
class Row:
    """What the executor knows of a request. Mutable; its own."""

    new: NewRow
    tokens: list[int]
    right: list[int]
    """The KV that these tokens must have, however they came here."""
    pages: list[int] = field(default_factory=list)


class HashExecutor:
    """The engine.core.executor.Executor of the module's text. AssertionError says where a plan breaks the contract."""

    def __init__(
        self,
        page_size: int,
        memory: Sequence[MutableSequence[int]],
        max_rows: int = 1 << 30,
        max_step_tokens: int = 1 << 30,
        early: Callable[[], bool] = lambda: False,
        values: Sequence[MutableSequence[int]] | None = None,
    ) -> None:
        """`memory`: one sequence of `page_size` signed 64-bit integers a page; `values`: the same for V, if apart."""
        self.page_size = page_size
        self.memory = memory
        self.values = values
        self.max_rows = max_rows
        self.max_step_tokens = max_step_tokens
        self.num_wrong = 0
        """Draws from KV that is not that of the row's tokens."""
        self._early = early
        self._launched: deque[StepPlan] = deque()
        """Not run."""
        self._ran: deque[tuple[StepPlan, StepOutput]] = deque()
        """Not collected."""
        self._rows: dict[int, Row] = {}
        self._num_known: dict[int, int] = {}
        """Tokens of each row that the planner has seen."""

    @property
    def num_rows(self) -> int:
        """Rows that were added and not removed."""
        return len(self._rows)

    def launch(self, plan: StepPlan) -> None:
        """Check the plan and run it, now or later."""
        for id in plan.removed:
            del self._num_known[id]
        for new in plan.added:
            assert new.id not in self._num_known, "a row was added twice"
            self._num_known[new.id] = len(new.tokens)
        columns = (plan.ids, plan.starts, plan.num_new, plan.samples, plan.feedback)
        assert {len(column) for column in columns} == {len(plan.ids)}, "columns differ in length"
        assert 0 < len(plan.ids) == len(set(plan.ids)), "no row, or one twice"
        assert len(self._num_known) <= self.max_rows and plan.num_tokens <= self.max_step_tokens, "too large a step"
        for id, start, num_new, feedback in zip(plan.ids, plan.starts, plan.num_new, plan.feedback, strict=True):
            if feedback:
                assert num_new == 1 and start >= self._num_known[id], "feedback of a token that is known"
            else:
                assert 0 < num_new <= self._num_known[id] - start, "a token that is not known"
        self._launched.append(plan)
        if self._early():
            while self._launched:
                self._run_oldest()

    @property
    def ready(self) -> bool:
        """Always: a step that is asked for is run then."""
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        """Nobody has to be woken."""

    def collect(self) -> StepOutput:
        """The output of the oldest step that was not collected."""
        if not self._ran:
            self._run_oldest()
        plan, output = self._ran.popleft()
        for id, sampled in zip(plan.ids, plan.samples, strict=True):
            if sampled and id in self._num_known:
                self._num_known[id] += 1
        return output

    def close(self) -> None:
        """Raises AssertionError when a step is in flight."""
        assert not self._launched and not self._ran, "a step is in flight"

    # ------------------------------------------------------------ inside

    def _run_oldest(self) -> None:
        plan = self._launched.popleft()
        for id in plan.removed:
            del self._rows[id]
        for new in plan.added:
            tokens = list(new.tokens)
            self._rows[new.id] = Row(new, tokens, kv_of(tokens))
        for id, pages in plan.new_pages:
            self._rows[id].pages += pages
        output = StepOutput(plan.step_id, [-1] * len(plan.ids), [None] * len(plan.ids), {}, 0.001 * plan.num_tokens)
        for index, id in enumerate(plan.ids):
            self._run_row(plan, index, self._rows[id], output)
        self._ran.append((plan, output))

    def _run_row(self, plan: StepPlan, index: int, row: Row, output: StepOutput) -> None:
        start, sampling = plan.starts[index], row.new.sampling
        end = start + plan.num_new[index]
        self._extend(row, start, end)
        if not plan.samples[index] and sampling.num_prompt_logprobs is None:
            return
        slots: list[int] = []
        values = self.memory if self.values is None else self.values
        for number in row.pages[: -(-end // self.page_size)]:
            slots += values[number]
        del slots[end:]
        if sampling.num_prompt_logprobs is not None and output.prompt_logprobs is not None:
            output.prompt_logprobs[row.new.id] = [
                logprob(slots[: position + 1], row.tokens[position + 1])
                for position in range(start, min(end, row.new.num_prompt - 1))
            ]
        if plan.samples[index]:
            assert end == len(row.tokens), "a token drawn in the middle"
            self.num_wrong += slots != row.right
            token = draw(slots, end - row.new.num_prompt, sampling)
            row.tokens.append(token)
            row.right.append(slot_value(row.right[-1], token))
            output.tokens[index] = token
            if sampling.num_logprobs is not None and output.logprobs is not None:
                output.logprobs[index] = logprob(slots, token)

    def _extend(self, row: Row, start: int, end: int) -> None:
        size, memory, values = self.page_size, self.memory, self.values
        before = memory[row.pages[(start - 1) // size]][(start - 1) % size] if start else 0
        for position in range(start, end):
            number, slot = row.pages[position // size], position % size
            before = memory[number][slot] = slot_value(before, row.tokens[position])
            if values is not None:
                values[number][slot] = before
