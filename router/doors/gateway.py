"""What every door asks before and after a client's request: who it is, what it may use, how it went."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from engine.core.errors import BatonError, Code, InvalidRequest, Unauthenticated
from router.api import Generator, Timing
from router.doors.session import Choice, run
from router.gateway.budget import Ledger, Quotas, Reservation
from router.gateway.record import RecordSink, RequestRecord
from router.gateway.tenants import OPEN_TO_ALL, Caller, TenantTable
from router.text.output import TextDelta

_UNCHARGED = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.FAILED_PRECONDITION)
"""A request that failed by these before its first token used nothing, as far as its tenant is concerned."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How one request came in."""

    caller: Caller = OPEN_TO_ALL
    arrived_s: float | None = None
    """When it was whole, by the gateway's clock; None is now."""
    ttft_slo_s: float | None = None
    """The client's own objective."""
    trace: Mapping[str, str] = field(default_factory=dict)


class Gateway:
    """Shared by the doors of one router. Without `tenants` everybody is let in as one anonymous tenant."""

    def __init__(
        self,
        tenants: TenantTable | None = None,
        sinks: Sequence[RecordSink] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tenants = tenants
        """Replaced as a whole when the file changes."""
        self.ledger = Ledger()
        self.clock = clock
        self.sinks = sinks
        self._turns: dict[str, asyncio.Lock] = {}
        """By tenant."""

    @asynccontextmanager
    async def costly(self, caller: Caller) -> AsyncIterator[None]:
        """Around work that a request makes before it enters: one at a time for each tenant: a flood waits for itself.

        It counts as a request if none comes of it. Raises RateLimited when the tenant's limits have no room for one.
        """
        tenant = caller.tenant
        async with self._turns.setdefault(tenant.name, asyncio.Lock()):
            self.ledger.check(tenant, self.clock())
            try:
                yield
            except (InvalidRequest, asyncio.CancelledError):
                self.ledger.charge(tenant, self.clock())
                raise

    def caller(self, *authorization: str) -> Caller:
        """Who sent these `Authorization` headers; of several nobody knows which is meant. Raises Unauthenticated."""
        if self.tenants is None:
            return OPEN_TO_ALL
        if len(authorization) > 1:
            raise Unauthenticated("more than one Authorization header")
        return self.tenants.caller(*authorization or ("",))

    def visit(self, arrival: Arrival, request_id: str, choices: Sequence[Choice]) -> "Visit":
        """One request of the caller; nothing is taken of its limits before it runs."""
        return Visit(self, arrival, request_id, choices)


class Visit:
    """One client request on its way through: takes what it may use, hands its answers on, and settles at its end."""

    def __init__(self, gateway: Gateway, arrival: Arrival, request_id: str, choices: Sequence[Choice]) -> None:
        self._gateway = gateway
        self._arrival = arrival
        self._request_id = request_id
        self._arrived_s = gateway.clock() if arrival.arrived_s is None else arrival.arrived_s
        tenant = arrival.caller.tenant
        self.choices = [
            replace(
                choice,
                call=replace(
                    choice.call,
                    tenant=tenant.name,
                    weight=tenant.weight,
                    priority=tenant.priority(choice.call.priority),
                    ttft_slo_s=arrival.ttft_slo_s or tenant.ttft_slo_s,
                ),
            )
            for choice in choices
        ]
        # The answers to one prompt share its buffer: it counts once, as in the usage that clients are told.
        self._num_prompt = sum({id(choice.call.tokens): len(choice.call.tokens) for choice in choices}.values())
        self._seen = _Seen()

    @property
    def quotas(self) -> Quotas:
        """What is left of the tenant's limits now."""
        return self._gateway.ledger.quotas(self._arrival.caller.tenant, self._gateway.clock())

    async def run(self, generator: Generator) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """See router.doors.session.run. Raises RateLimited before anything runs."""
        most = self._num_prompt + sum(choice.call.sampling.max_tokens for choice in self.choices)
        reservation: Reservation | None = None
        outcome = Code.INTERNAL.value
        try:
            reservation = self._gateway.ledger.enter(self._arrival.caller.tenant, most, self._gateway.clock())
            self._seen.called_s = self._gateway.clock()
            async with aclosing(run(generator, self.choices)) as events:
                async for index, delta in events:
                    self._note(index, delta)
                    yield index, delta
            outcome = "finished"
        except BatonError as error:
            outcome = error.code.value
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            self._end(reservation, outcome)

    def _note(self, index: int, delta: TextDelta) -> None:
        seen = self._seen
        seen.output_tokens += len(delta.tokens)
        if delta.cached_tokens is not None:
            seen.cached.setdefault(id(self.choices[index].call.tokens), delta.cached_tokens)  # the first copy's is true
        if index not in seen.first_s:
            seen.first_s[index] = self._gateway.clock()
        if delta.timing is not None:
            delta.timing = self._from_door_to_door(delta.timing, seen.first_s[index])
            if index == self.choices[0].index:
                seen.timing = delta.timing

    def _from_door_to_door(self, timing: Timing, first_s: float) -> Timing:
        """The router's own times, with what passed before it heard of the request and after it had the first token."""
        queue_s = self._seen.called_s - self._arrived_s + timing.queue_s
        deliver_s = max(first_s - self._seen.called_s - timing.ttft_s, 0.0)
        ttft_s = queue_s + timing.admit_s + timing.prefill_s + deliver_s
        return replace(timing, queue_s=queue_s, deliver_s=deliver_s, ttft_s=ttft_s)

    def _end(self, reservation: Reservation | None, outcome: str) -> None:
        seen, caller, now = self._seen, self._arrival.caller, self._gateway.clock()
        if reservation is not None:
            unused = not seen.output_tokens and outcome in _UNCHARGED
            self._gateway.ledger.settle(reservation, 0 if unused else self._num_prompt + seen.output_tokens, now)
        if not self._gateway.sinks:
            return
        total_s = now - self._arrived_s
        record = RequestRecord(
            request_id=self._request_id,
            tenant=caller.tenant.name,
            key_id=caller.key_id,
            outcome=outcome,
            num_sequences=len(self.choices),
            prompt_tokens=self._num_prompt,
            cached_tokens=sum(seen.cached.values()),
            output_tokens=seen.output_tokens,
            began_s=time.time() - total_s,
            total_s=total_s,
            timing=seen.timing,
            trace=self._arrival.trace,
        )
        for sink in self._gateway.sinks:
            sink.done(record)


@dataclass(slots=True)
class _Seen:
    """What passed by."""

    called_s: float = 0.0
    """When the router was told of the request."""
    first_s: dict[int, float] = field(default_factory=dict)
    """Of each answer, when its first part came by."""
    output_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)
    """By prompt."""
    timing: Timing = field(default_factory=Timing)
