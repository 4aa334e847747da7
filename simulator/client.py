"""A client that knows the right answer."""

from array import array
from dataclasses import dataclass, field

from engine.core.errors import BatonError, DeadlineExceeded
from engine.core.types import FinishReason
from router.api import Delta, GenerateCall
from simulator.executor import expected_tokens, kv_of, logprob
from simulator.worker import MAX_MODEL_LEN


@dataclass(slots=True)
class SimClient:
    """One call, what it was given, and what was wrong with that. Mutable."""

    call: GenerateCall
    sent_s: float
    expected: list[int]
    tokens: list[int] = field(default_factory=list)
    num_deltas: int = 0
    num_wrong: int = 0
    """Tokens that are not the right ones, or log probabilities that are not theirs."""
    error: BatonError | None = None
    cancelled: bool = False
    ended_s: float | None = None
    heard_s: float = 0.0
    """When something came last, or it was sent."""
    silences: list[tuple[float, float]] = field(default_factory=list)
    """From when to when nothing came."""

    @property
    def waits(self) -> bool:
        """No outcome yet, and it wants one."""
        return self.ended_s is None and not self.cancelled

    def take(self, delta: Delta, now: float) -> None:
        """One more delta. AssertionError when it is out of place; wrong tokens are counted."""
        assert self.ended_s is None and not self.cancelled, "a delta after the end"
        self._hear(now)
        begin = len(self.tokens)
        self.tokens += delta.tokens
        right = self.expected[begin : len(self.tokens)]
        self.num_wrong += abs(len(delta.tokens) - len(right))
        self.num_wrong += sum(a != b for a, b in zip(delta.tokens, right, strict=False))
        assert (delta.cached_tokens is not None) == (self.num_deltas == 0), "cached_tokens is for the first delta"
        self._check_logprobs(delta, begin)
        self.num_deltas += 1
        if delta.finish_reason is not None:
            self.ended_s = now
            self._check_end(delta)

    def fail(self, error: BatonError, now: float) -> None:
        """The call ended badly."""
        assert self.ended_s is None and not self.cancelled, "an error after the end"
        self._hear(now)
        self.error, self.ended_s = error, now

    def longest_silence_s(self, from_s: float) -> float:
        """Of those that ended after `from_s`."""
        return max((end_s - begin_s for begin_s, end_s in self.silences if end_s > from_s), default=0.0)

    def was_late(self, slack_s: float) -> bool:
        """Its outcome came after its deadline."""
        return self.ended_s is not None and self.ended_s > self.sent_s + self.call.timeout_s + slack_s

    @property
    def outcome(self) -> str:
        """finished, cancelled, expired (its own deadline), failed (any other error) or none."""
        if self.cancelled:
            return "cancelled"
        if self.error is not None:
            return "expired" if isinstance(self.error, DeadlineExceeded) else "failed"
        return "none" if self.ended_s is None else "finished"

    # ------------------------------------------------------------ inside

    def _hear(self, now: float) -> None:
        self.silences.append((self.heard_s, now))
        self.heard_s = now

    def _check_end(self, last: Delta) -> None:
        self.num_wrong += len(self.expected) - len(self.tokens)
        stopped = self.expected[-1] in self.call.sampling.stop_token_ids
        assert last.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH), "the wrong reason"
        assert last.stop_token == (self.expected[-1] if stopped else None), "the wrong stop token"
        assert last.timing is not None and last.timing.decode_worker, "nobody decoded it"

    def _check_logprobs(self, delta: Delta, begin: int) -> None:
        sampling = self.call.sampling
        if sampling.num_logprobs is None and not delta.prompt_logprobs:
            return
        slots = kv_of([*self.call.tokens, *self.tokens])
        if sampling.num_logprobs is not None:
            first = len(self.call.tokens) + begin
            right = [logprob(slots[: first + i], token) for i, token in enumerate(delta.tokens)]
            self.num_wrong += list(delta.logprobs) != right
        if self.num_deltas == 0 and sampling.num_prompt_logprobs is not None:
            tokens = self.call.tokens
            of_prompt = [logprob(slots[:i], tokens[i]) for i in range(1, len(tokens))]
            self.num_wrong += list(delta.prompt_logprobs) != of_prompt


def make_client(call: GenerateCall, now: float) -> SimClient:
    """A client that sends `call` now. What it must get follows from its tokens alone."""
    tokens: array[int] = call.tokens
    expected = expected_tokens(list(tokens), len(tokens), call.sampling, MAX_MODEL_LEN)
    return SimClient(call, now, expected, heard_s=now)
