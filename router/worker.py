"""One worker as one router knows it: what it said of itself, what was sent to it, and whether it can be trusted."""

from collections import deque
from enum import StrEnum

from engine.core.types import WorkerInfo, WorkerLoad
from kv_transfer.transports.base import peer_key
from router.breaker import Breaker
from router.config import HealthConfig
from router.cost_model import Work

_REPORT_LAG_S = 0.01
"""A report shows what was sent this long (or two steps) before it arrived; later work is counted on top."""


NO_WORK = Work(0, 0, 0)


class Health(StrEnum):
    """READY speaks, HUNG has been silent for too long while its session is open."""

    READY = "ready"
    HUNG = "hung"


class LegKind(StrEnum):
    """What one worker does for one attempt."""

    PREFILL = "prefill"
    DECODE = "decode"
    WHOLE = "whole"


class WorkerState:
    """Mutable record of one incarnation. `legs` is the truth of what this router has running there."""

    __slots__ = (
        "_sent",
        "_sent_pairs",
        "_sent_tokens",
        "breaker",
        "draining",
        "health",
        "heard_s",
        "info",
        "key",
        "legs",
        "load",
        "load_s",
        "num_decodes",
        "slot",
    )

    def __init__(self, info: WorkerInfo, slot: int, now: float, config: HealthConfig) -> None:
        self.key = peer_key(info.id, info.incarnation)
        self.info = info
        self.slot = slot
        """Its bit in the prefix index."""
        self.health = Health.READY
        self.draining = False
        self.heard_s = now
        self.load: WorkerLoad | None = None
        self.load_s = now
        self.breaker = Breaker(config)
        self.legs: dict[int, LegKind] = {}
        """Open legs by attempt id."""
        self.num_decodes = 0
        """Open legs that decode, now or soon."""
        self._sent: deque[tuple[float, int, int]] = deque()
        """(when, prompt tokens, their pairs) of work that the last report may not know of."""
        self._sent_tokens = self._sent_pairs = 0
        """Their sums."""

    def has_role(self, role: str) -> bool:
        """Whether it was started for "prefill" or "decode" (any worker can do both when need be)."""
        return role in self.info.roles

    def routable(self, now: float) -> bool:
        """May new work be sent?"""
        return self.health is Health.READY and not self.draining and self.breaker.allows(now)

    def open_leg(self, attempt: int, kind: LegKind, now: float, work: Work = NO_WORK) -> None:
        """Something was sent that computes the new tokens of `work`."""
        assert attempt not in self.legs, "one leg of an attempt a worker"
        self.legs[attempt] = kind
        self.num_decodes += kind is not LegKind.PREFILL
        if work.new:
            self._sent.append((now, work.new, work.pairs))
            self._sent_tokens += work.new
            self._sent_pairs += work.pairs
        self.breaker.on_use(now)

    def close_leg(self, attempt: int) -> None:
        """That work ended here, or was told to."""
        self.num_decodes -= self.legs.pop(attempt) is not LegKind.PREFILL

    def on_load(self, load: WorkerLoad, now: float) -> bool:
        """The worker's own word; it covers what it had heard of when it spoke. False: one said again is no news."""
        if self.load is not None and load.seq == self.load.seq:
            return False
        self.load, self.load_s = load, now
        self.draining = self.draining or load.draining
        lag_s = max(_REPORT_LAG_S, 2 * load.step_s)
        while self._sent and self._sent[0][0] <= now - lag_s:
            _, num_tokens, num_pairs = self._sent.popleft()
            self._sent_tokens -= num_tokens
            self._sent_pairs -= num_pairs
        return True

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait or are part done, as reported, and sent since."""
        reported = self.load.queued_tokens if self.load else 0
        return reported + self._sent_tokens

    @property
    def queued_pairs(self) -> int:
        """The same tokens, each with all before it in its own sequence."""
        return (self.load.queued_pairs if self.load else 0) + self._sent_pairs

    def work(self, new: int, cached: int, now: float) -> Work:
        """What a request of `new` uncached tokens after `cached` ones finds here."""
        spent_ms = (now - self.load_s) * 1000 if self.load and self.load.queued_tokens else 0.0
        return Work(self.queued_tokens, new, cached, self.queued_pairs, spent_ms)

    @property
    def num_rows(self) -> int:
        """Requests that decode there: as reported (other routers' too), or this router's own, also on the way."""
        reported = self.load.running_rows if self.load else 0
        return max(reported, self.num_decodes)

    @property
    def free_pages(self) -> int:
        """Free and evictable pages, as reported."""
        return self.load.free_pages if self.load else self.info.num_pages
