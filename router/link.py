"""One worker's place at the router: connect, listen, lose, connect again, until it is removed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from engine.core.errors import Incompatible, Unavailable
from engine.core.messages import Command, Frame
from engine.core.types import WorkerInfo
from kv_transfer.transports.base import peer_key
from router.events import FrameArrived, WorkerGone, WorkerJoined

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.1
_MAX_WAIT_S = 1.0
_REFUSED_WAIT_S = 5.0

LinkEvent = WorkerJoined | FrameArrived | WorkerGone


class WorkerConnection(Protocol):
    """One session with one worker; engine.wire.worker_client.WorkerClient. All failures are Unavailable."""

    async def connect(self) -> WorkerInfo:
        """Open the session."""

    def send(self, command: Command) -> None:
        """Queue one command; never waits."""

    def frames(self) -> AsyncIterator[Frame]:
        """Every frame in order; raises when the session is over."""

    async def close(self) -> None:
        """End the session. Idempotent."""


class WorkerLink:
    """Keeps a session with whatever incarnation answers at one address. Owns the connection."""

    def __init__(
        self,
        address: str,
        connect: Callable[[str], WorkerConnection],
        handle: Callable[["WorkerLink", LinkEvent], None],
    ) -> None:
        """`handle` gets what happens, in order; it may raise Incompatible for WorkerJoined, which is then undone."""
        self.address = address
        self.info: WorkerInfo | None = None
        """Of the last worker that answered; None before the first."""
        self.key: str | None = None
        """The incarnation that has joined, while its session is open."""
        self.state = "joining"
        """joining, ready (a session is open), lost, refused."""
        self.detail = "not connected yet"
        self._connect = connect
        self._handle = handle
        self._connection: WorkerConnection | None = None

    def send(self, command: Command) -> None:
        """Pass `command` on; one that a broken session loses is made good when the loss is reported."""
        if self._connection is not None:
            try:
                self._connection.send(command)
            except Unavailable as error:
                logger.debug("worker at %s: %s", self.address, error.message)

    async def run(self) -> None:
        """Until cancelled; then the session is closed and the worker counts as dead."""
        wait_s = _FIRST_WAIT_S
        while True:
            connection = self._connect(self.address)
            try:
                info = await connection.connect()
                wait_s = _FIRST_WAIT_S
                await self._listen(connection, info)
            except Incompatible as error:
                self._end("refused", error.message)
                wait_s = _REFUSED_WAIT_S
            except Unavailable as error:
                self._end("joining" if self.info is None else "lost", error.message)
            except asyncio.CancelledError:
                self._end("lost", "it was removed", dead=True)
                raise
            finally:
                await connection.close()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    async def _listen(self, connection: WorkerConnection, info: WorkerInfo) -> None:
        key = peer_key(info.id, info.incarnation)
        self.info, self._connection = info, connection  # before the event: what follows from it is sent at once
        self._handle(self, WorkerJoined(info))
        self.key, self.state, self.detail = key, "ready", ""
        logger.info("worker=%s incarnation=%016x at %s joined", info.id, info.incarnation, self.address)
        async for frame in connection.frames():
            self._handle(self, FrameArrived(key, frame))

    def _end(self, state: str, detail: str, dead: bool = False) -> None:
        if detail != self.detail:
            logger.log(logging.INFO if dead else logging.WARNING, "worker at %s: %s: %s", self.address, state, detail)
        self.state, self.detail, self._connection = state, detail, None
        key, self.key = self.key, None
        if key is None and dead and self.info is not None:
            key = peer_key(self.info.id, self.info.incarnation)  # lost before, and now known not to come back
        if key is not None:
            self._handle(self, WorkerGone(key, detail, dead))
