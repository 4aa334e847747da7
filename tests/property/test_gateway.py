"""Limits and shares hold whatever tenants do, in whatever order."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.core.errors import Unauthenticated
from router.fair_queue import FairQueue, Share
from router.gateway.budget import Ledger, RateLimited, Reservation
from router.gateway.tenants import RateLimit, Tenant, TenantTable, make_key

rates = st.floats(0.1, 1000.0)
STEPS = st.lists(
    st.tuples(st.floats(0.0, 5.0), st.integers(1, 500), st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=60
)


@given(rates, st.floats(1.0, 1000.0), STEPS)
def test_a_tenant_never_gets_more_than_burst_and_rate(
    per_s: float, burst: float, steps: list[tuple[float, int, float, bool]]
) -> None:
    """Tokens promised and used up to any moment: at most burst + rate x time, and what requests above a burst overdrew.

    And the wait that a refusal names is the true one.
    """
    tenant, ledger, now = Tenant("a", tokens=RateLimit(per_s, burst)), Ledger(), 0.0
    open_: list[tuple[Reservation, int]] = []
    used = overdrawn = 0.0
    for pause_s, tokens, part, settle in steps:
        now += pause_s
        try:
            reservation = ledger.enter(tenant, tokens, now)
        except RateLimited as refused:
            assert refused.retry_after_s is not None
            now += refused.retry_after_s * (1 + 1e-9) + 1e-9
            reservation = ledger.enter(tenant, tokens, now)
        open_.append((reservation, tokens))
        if settle:
            reservation, most = open_.pop(0)
            really = int(part * most)
            overdrawn += max(0.0, really - reservation.tokens)
            used += really
            ledger.settle(reservation, really, now)
        promised = used + sum(reservation.tokens for reservation, _ in open_)
        assert promised <= burst + per_s * now + overdrawn + 1e-6 * (1 + promised)


WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


class FairShares(RuleBasedStateMachine):
    """Start-time fair queueing bounds the difference of service between tenants that both wait: for the same span it is
    at most one call of each, by weight (Goyal, Vin, Cheng 1996, theorem 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.shares: dict[int, Share] = {}
        self.served: list[tuple[str, float]] = []
        """(tenant, cost by weight) of each call that went."""
        self.since: dict[str, int] = {}
        """Tenant -> calls that had gone when it began to wait."""
        self.largest: dict[str, float] = defaultdict(float)

    @rule(tenant=st.sampled_from("abc"), cost=st.integers(1, 50), count=st.integers(1, 5))
    def come(self, tenant: str, cost: int, count: int) -> None:
        for _ in range(count):
            call = len(self.shares)
            self.shares[call] = Share(tenant, WEIGHTS[tenant], cost=cost, prompt=cost)
            if not self.waits(tenant):
                self.since[tenant] = len(self.served)
            self.largest[tenant] = max(self.largest[tenant], cost / WEIGHTS[tenant])
            self.queue.push(call, self.shares[call])

    def waits(self, tenant: str) -> bool:
        return any(self.shares[call].tenant == tenant for call in self.queue)

    @precondition(lambda self: len(self.queue))
    @rule()
    def go(self) -> None:
        share = self.shares[self.queue.pop()]
        self.served.append((share.tenant, share.cost / share.weight))

    @precondition(lambda self: len(self.queue))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.queue.remove(data.draw(st.sampled_from(sorted(self.queue))))

    @invariant()
    def shares_are_fair(self) -> None:
        self.queue.check_integrity()
        waiting = [tenant for tenant in "abc" if self.waits(tenant)]
        for one in waiting:
            for other in waiting:
                since = self.served[max(self.since[one], self.since[other]) :]
                had = {name: sum(cost for tenant, cost in since if tenant == name) for name in (one, other)}
                assert had[one] - had[other] <= self.largest[one] + self.largest[other] + 1e-6


TestFairShares = FairShares.TestCase
TestFairShares.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.binary(min_size=6, max_size=6), st.binary(min_size=32, max_size=32), st.text(max_size=100))
def test_no_other_header_is_let_in(id: bytes, secret: bytes, guess: str) -> None:
    key, kept = make_key(id, secret)
    table = TenantTable.of([(Tenant("a"), [kept])])
    assert table.caller(f"Bearer {key}").key_id == kept.id
    for header in (guess, f"Bearer {guess}", f"Bearer baton_{kept.id}_{guess}"):
        if header == f"Bearer {key}":
            continue
        with pytest.raises(Unauthenticated):
            table.caller(header)
