"""What a client has not been given yet: tokens collected during a frame and sent as one Delta."""

from engine.core.types import FinishReason, TokenLogprob
from router.api import Delta, Timing


class Outgoing:
    """Tokens of one call that arrived and were not emitted."""

    __slots__ = ("_cached_tokens", "_logprobs", "_prompt_logprobs", "_tokens", "begun")

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []
        self._cached_tokens: int | None = None
        self.begun = False
        """True once a delta was taken: what belongs on the first one has been said."""

    def add(self, token: int, logprob: TokenLogprob | None) -> None:
        """One token, in order."""
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)

    def set_prompt(self, cached_tokens: int) -> None:
        """What was found in a cache; said on the first delta."""
        self._cached_tokens = cached_tokens

    def add_prompt_logprobs(self, values: list[TokenLogprob]) -> None:
        """Of prompt positions, chunk by chunk; said on the first delta."""
        if not self.begun:
            self._prompt_logprobs.extend(values)

    def drop_prompt(self) -> None:
        """The attempt that computed the prompt is over before its first token: another one says it again."""
        self._prompt_logprobs.clear()
        self._cached_tokens = None

    def take(self, timing: Timing | None = None) -> Delta | None:
        """What there is to emit in the middle of a call; None when there is nothing. `timing` is for the first."""
        return self._delta(None, None, timing) if self._tokens else None

    def take_last(self, reason: FinishReason, stop_token: int | None, timing: Timing) -> Delta:
        """The delta that ends the call."""
        return self._delta(reason, stop_token, timing)

    def _delta(self, reason: FinishReason | None, stop_token: int | None, timing: Timing | None) -> Delta:
        first = not self.begun
        self.begun = True
        delta = Delta(
            tuple(self._tokens),
            tuple(self._logprobs),
            tuple(self._prompt_logprobs) if first else (),
            self._cached_tokens if first else None,
            reason,
            stop_token,
            timing,
        )
        self._tokens, self._logprobs = [], []
        if first:
            self._prompt_logprobs = []
        return delta
