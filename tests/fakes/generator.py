"""A router that answers from a script."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from engine.core.errors import BatonError
from engine.core.types import FinishReason, Sampling, TokenLogprob
from router.api import Delta, GenerateCall, PrefixTree, ServiceStatus, Timing
from router.prefix_outline import PrefixNode

TIMING = Timing(0.0001, 0.0002, 0.0003, 0.0, 0.0006, 0.004, 0.005, "p0", "d0")
Script = Callable[[GenerateCall], Sequence[int]]


class FakeGenerator:
    """Generates `script(call)`, at most max_tokens of it, and ends at a stop token.

    Attributes:
        calls: every call so far.
        running: calls that are open now; `idle` is set while there is none.
        pause_after: tokens after which a call waits for `resume`.
        error: raised after `pause_after` tokens instead of waiting.
        chunk: tokens in a delta.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[GenerateCall] = []
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.pause_after: int | None = None
        self.paused = asyncio.Event()
        self.resume = asyncio.Event()
        self.error: BatonError | None = None
        self.chunk = 1
        self.cached_tokens = 3

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
        """Play the script."""
        self.calls.append(call)
        self.running += 1
        self.idle.clear()
        try:
            async for delta in self._play(call):
                yield delta
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def _play(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
        tokens, stop_token = _cut(list(self.script(call)), call.sampling)
        if self.error is not None and not self.pause_after:
            raise self.error
        for start in range(0, len(tokens), self.chunk):
            if self.pause_after is not None and start >= self.pause_after:
                await self._hold()
            await asyncio.sleep(0)
            part = tuple(tokens[start : start + self.chunk])
            last = start + self.chunk >= len(tokens)
            reason = (FinishReason.LENGTH if stop_token is None else FinishReason.STOP) if last else None
            yield Delta(
                tokens=part,
                logprobs=_logprobs(part, call.sampling.num_logprobs),
                prompt_logprobs=_logprobs(call.tokens[1:], call.sampling.num_prompt_logprobs) if start == 0 else (),
                cached_tokens=self.cached_tokens if start == 0 else None,
                finish_reason=reason,
                stop_token=stop_token if last else None,
                timing=TIMING if last or start == 0 else None,
            )

    async def _hold(self) -> None:
        self.paused.set()
        if self.error is not None:
            raise self.error
        await self.resume.wait()


def _cut(tokens: list[int], sampling: Sampling) -> tuple[list[int], int | None]:
    for index, token in enumerate(tokens[: sampling.max_tokens]):
        if token in sampling.stop_token_ids and index >= sampling.min_tokens:
            return tokens[: index + 1], token
    return tokens[: sampling.max_tokens], None


def _logprobs(tokens: Sequence[int], count: int | None) -> tuple[TokenLogprob, ...]:
    """Made up from the token ids: token t has probability exp(-t / 64), the likeliest are 0, 1, 2, ..."""
    if count is None:
        return ()
    top = tuple((token, -token / 64) for token in range(count))
    return tuple(TokenLogprob(token, -token / 64, top) for token in tokens)


class FakeStatus:
    """A service that says what it is told to."""

    def __init__(self, status: ServiceStatus) -> None:
        self.now = status

    def status(self) -> ServiceStatus:
        """What was set last."""
        return self.now

    def prefix_tree(self) -> PrefixTree:
        """Two pages that both workers hold, and one below that only the second has."""
        below = PrefixNode(b"\x02" * 8, 1, ("decode-0",))
        return PrefixTree((PrefixNode(b"\x01" * 8, 2, ("decode-0", "prefill-0"), [below]),), 16)
