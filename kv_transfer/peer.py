"""One incarnation of another worker: how it proves itself before pages are pulled from it, and how it heals. Pure.

A pair proves itself over the first transport that works, in order of preference: connect, read the golden page over
every route from rank to rank (its bytes are known from the peer's name), read its generation (the incarnation), then
read it many times for the bandwidth. A peer that was lost or hung is not blacklisted: it is SUSPECT, and tried again
with growing pauses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import shake_256

from engine.core.errors import IllegalEvent
from engine.core.types import WorkerInfo
from kv_transfer.api import PeerReady, PeerRefused
from kv_transfer.link import Link, LinkLimits
from kv_transfer.transports.base import peer_key


class PeerState(StrEnum):
    """CONNECTING to TIMING are the steps of the proof; pages are pulled from READY peers only."""

    CONNECTING = "connecting"
    GOLDEN = "golden page"
    GENERATION = "generation"
    TIMING = "bandwidth"
    READY = "ready"
    SUSPECT = "suspect"


class PeerEvent(StrEnum):
    """What can happen to a peer."""

    STEP_OK = "step passed"
    NEXT_TRANSPORT = "step failed, another transport is left"
    FAULT = "lost, hung, or no transport is left"
    RETRY = "time to try again"


_S, _E = PeerState, PeerEvent

PEER_TABLE: dict[PeerState, dict[PeerEvent, PeerState]] = {
    _S.CONNECTING: {_E.STEP_OK: _S.GOLDEN, _E.NEXT_TRANSPORT: _S.CONNECTING, _E.FAULT: _S.SUSPECT},
    _S.GOLDEN: {_E.STEP_OK: _S.GENERATION, _E.NEXT_TRANSPORT: _S.CONNECTING, _E.FAULT: _S.SUSPECT},
    _S.GENERATION: {_E.STEP_OK: _S.TIMING, _E.NEXT_TRANSPORT: _S.CONNECTING, _E.FAULT: _S.SUSPECT},
    _S.TIMING: {_E.STEP_OK: _S.READY, _E.NEXT_TRANSPORT: _S.CONNECTING, _E.FAULT: _S.SUSPECT},
    _S.READY: {_E.FAULT: _S.SUSPECT},
    _S.SUSPECT: {_E.RETRY: _S.CONNECTING},
}


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """How a peer is judged. A proven one is judged by the bandwidth that its proof measured."""

    timed_bytes: int = 16 << 20
    """About what is read at once to measure the bandwidth."""
    join_stall_s: float = 5.0
    """No answer for this long fails a step of the proof: the first read also sets up the connection."""
    join_floor_bytes_per_s: float = 32 << 20
    """A pair that is slower in its proof is refused."""
    join_grace_s: float = 0.5
    """Not counted then: small pages say more about latency than about bandwidth."""
    posted_s: float = 0.05
    """Reads for this many seconds at the measured bandwidth are posted at once, so that the link never idles."""
    min_posted_bytes: int = 256 << 10
    """Posted at once on the slowest of links. What is posted, at `slowdown` times less than the measured bandwidth, is
    what a stall goes unnoticed for on top of the grace, so no more than that on a link that measured slow."""
    max_posted_bytes: int = 64 << 30
    """Posted at once on the fastest of links. What is posted to a peer that hangs is quarantined until it goes on, so
    `Pairs` takes a part of the reader's pool where that is less."""
    slowdown: float = 8.0
    """How many times slower than measured a healthy peer may be, under load."""
    stall_grace_s: float = 0.5
    """With the rest, a hung peer is found within a second, unless one page alone takes longer."""
    first_pause_s: float = 0.25
    """How long a suspect peer is left alone; doubles up to `last_pause_s`."""
    last_pause_s: float = 5.0

    @property
    def proof_limits(self) -> LinkLimits:
        """While nothing is measured yet; a proof has one read in flight."""
        return LinkLimits(self.min_posted_bytes, float("inf"), self.join_stall_s)

    def limits(self, bytes_per_s: float) -> LinkLimits:
        """For a peer that was measured."""
        posted = max(self.min_posted_bytes, min(int(self.posted_s * bytes_per_s), self.max_posted_bytes))
        return LinkLimits(posted, bytes_per_s / self.slowdown, self.stall_grace_s)


class Peer:
    """State of one pair; the caller connects, reads and reports."""

    def __init__(self, info: WorkerInfo, transports: Sequence[str], config: PeerConfig) -> None:
        """`transports` are the names that both sides have, the preferred one first; at least one."""
        self.info = info
        self.key = peer_key(info.id, info.incarnation)
        self.state = PeerState.CONNECTING
        self.link = Link(config.proof_limits)
        self.judged = False
        """Its first proof has ended, well or not."""
        self.proof_op: int | None = None
        """The read of the step under way; others of this peer are leftovers of earlier proofs."""
        self._transports = tuple(transports)
        self._choice = 0
        self._config = config
        self._pause_s = config.first_pause_s
        self._retry_s = float("inf")
        self._reasons: list[str] = []

    @property
    def transport(self) -> str:
        """The name of the transport in use or on trial."""
        return self._transports[self._choice]

    @property
    def proving(self) -> bool:
        """A step of the proof is under way."""
        return self.state not in (PeerState.READY, PeerState.SUSPECT)

    @property
    def retry_s(self) -> float:
        """When to call `retry`."""
        return self._retry_s

    def step_ok(self) -> None:
        """Connected, or the golden page, or its generation was right."""
        if self.state is PeerState.TIMING:
            raise IllegalEvent(f"{self.key}: the last step is passed by `timed`")
        self._go(PeerEvent.STEP_OK)

    def timed(self, bytes_per_s: float) -> PeerReady:
        """The last step was passed."""
        if self.state is not PeerState.TIMING:
            raise IllegalEvent(f"{self.key}: timed in state {self.state.value!r}")
        self._go(PeerEvent.STEP_OK)
        self._pause_s = self._config.first_pause_s
        self.judged = True
        self.link.limits = self._config.limits(bytes_per_s)
        message, self._reasons = "; ".join(self._reasons), []
        return PeerReady(self.info.id, self.info.incarnation, self.transport, bytes_per_s, message)

    def fault(self, reason: str, now: float) -> PeerRefused | None:
        """A step failed, or a proven peer was lost or hung. None: the proof goes on with another transport."""
        self._reasons.append(f"{self.transport}: {reason}")
        # What was posted until now may end much later, and is nobody's progress and no proof.
        self.link = Link(self._config.proof_limits)
        self.proof_op = None
        if self.proving and self._choice + 1 < len(self._transports):
            self._choice += 1
            self._go(PeerEvent.NEXT_TRANSPORT)
            return None
        self._go(PeerEvent.FAULT)
        self.judged = True
        self._retry_s = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._config.last_pause_s)
        message, self._reasons = "; ".join(self._reasons), []
        return PeerRefused(self.info.id, self.info.incarnation, message, permanent=False)

    def retry(self) -> None:
        """Begin the proof again with the preferred transport."""
        self._go(PeerEvent.RETRY)
        self._choice = 0
        self._retry_s = float("inf")

    def _go(self, event: PeerEvent) -> None:
        target = PEER_TABLE[self.state].get(event)
        if target is None:
            raise IllegalEvent(f"{self.key}: {event.value!r} in state {self.state.value!r}")
        self.state = target


def golden_bytes(key: str, num_bytes: int, rank: int = 0) -> bytes:
    """What the golden page of the worker named `key` (peer_key) holds on one rank: SHAKE-256 of both."""
    name = f"{key} rank {rank}" if rank else key
    return shake_256(b"baton golden page" + name.encode()).digest(num_bytes)
