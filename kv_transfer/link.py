"""The reads on their way from one peer: how much may be posted at once, and when the peer counts as hung. Pure."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from kv_transfer.session import GenerationRead
from kv_transfer.transports.base import PageRead

Read = PageRead | GenerationRead


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """What may be posted to one peer at once, and how slow it may become."""

    max_posted_bytes: int
    """Posted at once; the rest waits its turn and can still be withdrawn."""
    floor_bytes_per_s: float
    stall_grace_s: float
    """If this worker watched for this long plus the time that `floor_bytes_per_s` needs for all that is posted, and no
    read ended, the peer is hung."""

    @property
    def max_read_bytes(self) -> int:
        """Of one read, as long as one page is not larger: several fit, so that progress shows before all has ended."""
        return self.max_posted_bytes // 4


class Link:
    """Posts in order of arrival, except that reads of generations, which are tiny and end a handoff, go first."""

    def __init__(self, limits: LinkLimits) -> None:
        self.limits = limits
        self._waiting: deque[tuple[Read, int]] = deque()
        self._posted: dict[int, int] = {}
        self._posted_bytes = 0
        self._watched_s = 0.0
        """Since a read ended, or the first one was posted."""

    @property
    def busy(self) -> bool:
        """Something is posted."""
        return bool(self._posted)

    @property
    def stalled(self) -> bool:
        """Too few bytes arrived for too long: the peer counts as hung."""
        limits = self.limits
        return self.busy and self._watched_s >= limits.stall_grace_s + self._posted_bytes / limits.floor_bytes_per_s

    def watched(self, seconds: float) -> None:
        """This worker was awake for so long, and has taken in what ended meanwhile."""
        self._watched_s += seconds

    def push(self, read: Read, num_bytes: int) -> None:
        """Queue a read; `take` says when to post it."""
        if isinstance(read, GenerationRead):
            self._waiting.appendleft((read, num_bytes))
        else:
            self._waiting.append((read, num_bytes))

    def take(self) -> list[Read]:
        """The reads to post now; they count as posted from here on."""
        taken: list[Read] = []
        while self._waiting:
            read, num_bytes = self._waiting[0]
            if self._posted and self._posted_bytes + num_bytes > self.limits.max_posted_bytes:
                break
            if not self._posted:
                self._watched_s = 0.0
            self._waiting.popleft()
            self._posted[read.op] = num_bytes
            self._posted_bytes += num_bytes
            taken.append(read)
        return taken

    def ended(self, op: int) -> None:
        """A read ended, well or not: the peer, or its transport, is alive. Reads of an earlier link don't count."""
        num_bytes = self._posted.pop(op, None)
        if num_bytes is not None:
            self._posted_bytes -= num_bytes
            self._watched_s = 0.0

    def withdraw(self, ops: Collection[int]) -> list[int]:
        """Take back those of `ops` that were not posted yet, and name them."""
        kept: deque[tuple[Read, int]] = deque()
        withdrawn: list[int] = []
        for read, num_bytes in self._waiting:
            if read.op in ops:
                withdrawn.append(read.op)
            else:
                kept.append((read, num_bytes))
        self._waiting = kept
        return withdrawn

    def drain(self) -> list[int]:
        """Take back everything that was not posted."""
        withdrawn = [read.op for read, _ in self._waiting]
        self._waiting.clear()
        return withdrawn
