"""Whether a worker lives, and whether it is ready: what Kubernetes' probes ask for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.core.messages import PeerStatus
from engine.core.types import Request, WorkerLoad
from engine.server.role import RequestWord

STUCK_S = 60.0
"""The engine thread reports every 0.1 s, except while it waits for the device; no step takes so long."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of the engine thread's last report. Replaced as a whole, so other threads may read it at any time."""

    at_s: float
    draining: bool = False
    num_routers: int = 0
    not_proven: tuple[str, ...] = ()


class Readiness:
    """An observer of the engine loop. A worker is ready when some router has a session with it, it does not want to
    leave, and one page (the golden one) has moved from every worker that a router introduced to it.

    Pages are pulled, so a pair is judged by its target: a worker that only computes prompts pulls from nobody.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = _Seen(clock())

    def why_dead(self) -> str:
        """Empty while the engine thread lives, else what is wrong."""
        silent_s = self._clock() - self._seen.at_s
        return f"the engine thread has said nothing for {silent_s:.0f} s" if silent_s > STUCK_S else ""

    def why_not_ready(self) -> str:
        """Empty when it is ready, else what is missing."""
        seen = self._seen
        if dead := self.why_dead():
            return dead
        if seen.draining:
            return "it is leaving"
        if not seen.num_routers:
            return "no router has a session with it"
        return "; ".join(seen.not_proven)

    def submitted(self, request: Request) -> None:
        """Requests do not matter here."""

    def said(self, word: RequestWord, now: float) -> None:
        """Requests do not matter here."""

    def stepped(self, num_rows: int, wall_s: float) -> None:
        """Steps do not matter here."""

    def loaded(self, load: WorkerLoad) -> None:
        """A load report went out."""
        self._seen = replace(self._seen, draining=load.draining)

    def connected(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """See Observer."""
        missing = tuple(f"cannot pull from {peer.worker_id}: {peer.message}" for peer in peers if not peer.ready)
        self._seen = replace(self._seen, at_s=self._clock(), num_routers=num_routers, not_proven=missing)
