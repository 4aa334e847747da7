"""Calls that wait, shared out fairly between tenants: start-time fair queueing by weight and cost.

Within a tenant calls go by priority, then by arrival. Between tenants the most urgent head goes first; among equally
urgent heads the tenant that has had least for its weight (Goyal, Vin, Cheng, "Start-time fair queueing", 1996):

    start(head) = max(virtual time, finish of the tenant's last call)      finish = start + cost / weight
    virtual time = start of the last call that went

So whatever one tenant sends, another one's next call waits for at most one call of each tenant before it. Costs are
charged when a call goes, so one that is withdrawn cost nothing. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Share:
    """How one call takes part: who it is for, and what it is expected to cost (tokens)."""

    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    """Smaller goes first."""
    cost: float = 1.0
    prompt: int = 0
    """Of the cost, what is computed before the first token."""


@dataclass(slots=True)
class _Line:
    """One tenant's waiting calls."""

    calls: dict[int, Share] = field(default_factory=dict)
    heap: list[tuple[int, int, int]] = field(default_factory=list)
    """(priority, arrival, call); entries of calls that were withdrawn are skipped."""
    prompt: int = 0
    """Tokens of all its calls' prompts."""

    def head(self) -> tuple[int, int, int]:
        while self.heap[0][2] not in self.calls:
            heappop(self.heap)
        return self.heap[0]


class FairQueue:
    """Owns the waiting calls and what each tenant has had. Each choice looks at each tenant that waits."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._tenant_of: dict[int, str] = {}
        self._finish: dict[str, float] = {}
        """Of tenants that are ahead of virtual time; others begin at it."""
        self._virtual = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._tenant_of)

    def __contains__(self, call: int) -> bool:
        return call in self._tenant_of

    def __iter__(self) -> Iterator[int]:
        return iter(self._tenant_of)

    def push(self, call: int, share: Share) -> None:
        """One more waits."""
        line = self._lines.setdefault(share.tenant, _Line())
        line.calls[call] = share
        line.prompt += share.prompt
        self._arrivals += 1
        heappush(line.heap, (share.priority, self._arrivals, call))
        self._tenant_of[call] = share.tenant

    def pop(self) -> int:
        """The call whose turn it is; the queue is not empty."""
        tenant = min(
            self._lines, key=lambda name: (self._lines[name].head()[0], self._start(name), self._head_at(name))
        )
        call = self._lines[tenant].head()[2]
        share = self._remove(call)
        self.charge(share)
        return call

    def charge(self, share: Share) -> None:
        """A call goes, after waiting or at once: its tenant has had that much more."""
        start = self._start(share.tenant)
        self._virtual = max(self._virtual, start)
        self._finish[share.tenant] = start + share.cost / share.weight
        if len(self._finish) > 2 * len(self._lines) + 64:
            self._finish = {name: finish for name, finish in self._finish.items() if finish > self._virtual}

    def remove(self, call: int) -> None:
        """Call `call` waits no more, and had nothing."""
        self._remove(call)

    def last_of_longest(self, tenant: str, weight: float) -> int | None:
        """The call to give up when there is no more room and one of `tenant` comes: the least urgent, latest one of the
        tenant with most calls for its weight; None when that is `tenant` itself, or would be with its new call.
        """
        own = (len(self._lines[tenant].calls) + 1 if tenant in self._lines else 1) / weight
        longest = max(self._lines, key=self._length, default=None)
        if longest is None or longest == tenant or self._length(longest) <= own:
            return None
        alive = (entry for entry in self._lines[longest].heap if entry[2] in self._lines[longest].calls)
        return max(alive)[2]

    def prompt_before(self, share: Share) -> int:
        """Prompt tokens likely to go before a new call with `share`: its own tenant's, and others' shares meanwhile."""
        total = sum(line.prompt for line in self._lines.values())
        own = self._lines.get(share.tenant)
        weights = sum(next(iter(line.calls.values())).weight for line in self._lines.values())
        if own is None:
            weights += share.weight
        through_own = ((own.prompt if own else 0) + share.prompt) * weights / share.weight - share.prompt
        return min(total, int(through_own))

    def _length(self, tenant: str) -> float:
        calls = self._lines[tenant].calls
        return len(calls) / next(iter(calls.values())).weight

    def _start(self, tenant: str) -> float:
        return max(self._virtual, self._finish.get(tenant, 0.0))

    def _head_at(self, tenant: str) -> int:
        return self._lines[tenant].head()[1]

    def _remove(self, call: int) -> Share:
        tenant = self._tenant_of.pop(call)
        line = self._lines[tenant]
        share = line.calls.pop(call)
        line.prompt -= share.prompt
        if not line.calls:
            del self._lines[tenant]
        elif len(line.heap) > 2 * len(line.calls) + 64:
            line.heap = sorted(entry for entry in line.heap if entry[2] in line.calls)
        return share

    def check_integrity(self) -> None:
        """Raise AssertionError unless every waiting call is in its tenant's line, once."""
        assert {call: name for name, line in self._lines.items() for call in line.calls} == self._tenant_of
        for line in self._lines.values():
            assert line.calls and line.calls.keys() <= {entry[2] for entry in line.heap}
            assert line.prompt == sum(share.prompt for share in line.calls.values())
