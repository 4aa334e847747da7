"""Workers found by name: the addresses of a headless service, asked for again and again.

Who answers at an address says itself which worker and which incarnation it is (router.link); a name only says where
to look.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.core.errors import InvalidRequest, Unavailable
from router.roster import Roster

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
_NO_SUCH_NAME = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


@dataclass(frozen=True, slots=True)
class WorkerName:
    """A name and the port that each of its addresses listens on."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "WorkerName":
        """From NAME:PORT. Raises InvalidRequest."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidRequest(f"{text!r} is not NAME:PORT", param="workers-dns")
        return cls(host, int(port))


Resolve = Callable[[WorkerName], Awaitable[frozenset[str]]]


class Workers(Protocol):
    """The router's workers, RouterService."""

    @property
    def connected(self) -> frozenset[str]:
        """Addresses that a session is open with."""

    def add_worker(self, address: str) -> None:
        """Keep a session with the worker there from now on."""

    async def remove_worker(self, address: str, drain_s: float = 0.0) -> None:
        """Forget it. Raises NotFound when it is not there."""


async def resolve(name: WorkerName) -> frozenset[str]:
    """Its host:port addresses; none when there is no such name, as of a service without pods.

    Of a name with addresses of both families only the IPv4 ones count: a worker listens on one.
    Raises Unavailable when the name service does not answer.
    """
    try:
        entries = await asyncio.to_thread(socket.getaddrinfo, name.host, name.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return frozenset()
        raise Unavailable(f"cannot look up {name.host}: {error.strerror}") from error
    families = {family: {str(address[0]) for each, *_, address in entries if each == family} for family, *_ in entries}
    if v4 := families.get(socket.AF_INET):
        return frozenset(f"{host}:{name.port}" for host in v4)
    return frozenset(f"[{host}]:{name.port}" for host in families.get(socket.AF_INET6, ()))


class Discovery:
    """Keeps the router's workers as the names say."""

    def __init__(
        self, workers: Workers, names: Sequence[WorkerName], resolve: Resolve = resolve, period_s: float = PERIOD_S
    ) -> None:
        self._workers = workers
        self._rosters = [(name, Roster()) for name in names]
        self._resolve = resolve
        self._period_s = period_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for name, roster in self._rosters:
                await self._follow(name, roster)
            await asyncio.sleep(self._period_s)

    async def _follow(self, name: WorkerName, roster: Roster) -> None:
        try:
            found = await self._resolve(name)
        except Unavailable as error:
            logger.warning("%s; the workers stay as they are", error.message)
            return
        change = roster.update(found, self._workers.connected)
        for address in change.added:
            logger.info("%s has a worker at %s", name.host, address)
            self._workers.add_worker(address)
        for address in change.removed:
            logger.info("%s has no worker at %s any more", name.host, address)
            await self._workers.remove_worker(address)
