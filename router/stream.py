"""What waits between the router core and one client that reads at its own pace."""

import asyncio
from collections import deque

from engine.core.errors import BatonError
from router.api import Delta


class CallStream:
    """Deltas of one call. A slow reader gets several as one, so what waits is never more than the call's tokens."""

    __slots__ = ("_deltas", "_error", "_waiter", "ended", "last_s", "sent_s")

    def __init__(self, now: float) -> None:
        self.sent_s = now
        """When the call came in."""
        self.last_s: float | None = None
        """When its last tokens came out."""
        self.ended = False
        """True once its outcome was pushed."""
        self._deltas: deque[Delta] = deque()
        self._error: BatonError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        """One more delta."""
        self._deltas.append(delta)
        self.ended = delta.finish_reason is not None
        self._wake()

    def fail(self, error: BatonError) -> None:
        """The call ended with `error`; what was pushed before is read first."""
        self._error = error
        self.ended = True
        self._wake()

    async def read(self) -> Delta:
        """All that came since the last read; waits for something. Raises the error that ended the call."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if len(self._deltas) == 1:
            return self._deltas.popleft()
        merged = merge(self._deltas)
        self._deltas.clear()
        return merged

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def merge(deltas: "deque[Delta]") -> Delta:
    """Consecutive deltas of one call as one."""
    first, last = deltas[0], deltas[-1]
    return Delta(
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=first.cached_tokens,
        finish_reason=last.finish_reason,
        stop_token=last.stop_token,
        timing=last.timing or first.timing,
    )
