"""A client that leaves ends what is done for it: one watch for each request, from its body to the end of its answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from engine.core.errors import Cancelled

_T = TypeVar("_T")


class Leaving:
    """Cancels the task that answers `request`, which must be the one that makes this, when the client has left.

    That task calls `close` in any case, and `is_why` to know what cancelled it.
    """

    def __init__(self, request: Request) -> None:
        """The request's body has been read."""
        task = asyncio.current_task()
        assert task is not None, "only a task can be cancelled"
        self._task = task
        self._request = request
        self._left = False
        self._watch = asyncio.create_task(self._disconnected())

    async def result(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns. Raises Cancelled when the client leaves first; then the work has been cancelled."""
        try:
            return await work
        except asyncio.CancelledError:
            if self.is_why():
                raise Cancelled("the client closed the connection") from None
            raise

    def is_why(self) -> bool:
        """Asked by the task when it is cancelled: whether the client's leaving is the only reason."""
        return self._left and self._task.uncancel() == 0

    def close(self) -> None:
        """The answer is over. Idempotent."""
        self._watch.cancel()

    async def _disconnected(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()
