import pytest

from router.gateway.bucket import Bucket
from router.gateway.budget import Ledger, RateLimited
from router.gateway.tenants import RateLimit, Tenant


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    bucket = Bucket(RateLimit(per_s=2.0, burst=10.0), 100.0)
    assert bucket.wait_s(10, 100.0) == 0
    bucket.take(10, 100.0)
    assert bucket.wait_s(1, 100.0) == pytest.approx(0.5)
    assert bucket.wait_s(1, 100.5) == pytest.approx(0.0)
    bucket.take(1, 100.5)
    assert bucket.full_s(100.5) == pytest.approx(5.0)
    assert bucket.level(200.0) == 10
    assert bucket.level(150.0) == 10, "a clock that goes back takes nothing away"


def test_what_was_used_stays_used_when_the_limit_changes() -> None:
    bucket = Bucket(RateLimit(1.0, 10.0), 0.0)
    bucket.take(8, 0.0)
    bucket.change(RateLimit(4.0, 100.0), 0.0)
    assert (bucket.level(0.0), bucket.level(1.0)) == (92, 96)


def test_requests_per_second_and_the_true_wait() -> None:
    ledger, tenant = Ledger(), Tenant("a", requests=RateLimit(2.0, 2.0))
    for _ in range(2):
        ledger.enter(tenant, 10, 0.0)
    with pytest.raises(RateLimited, match="2 requests/s") as refused:
        ledger.enter(tenant, 10, 0.1)
    wait_s = refused.value.retry_after_s
    assert wait_s == pytest.approx(0.4)
    quota = refused.value.quotas.requests
    assert quota and (quota.limit, quota.remaining, quota.reset_s) == (2, 0, pytest.approx(0.9))
    with pytest.raises(RateLimited):
        ledger.enter(tenant, 10, 0.1 + wait_s * 0.99)
    ledger.enter(tenant, 10, 0.1 + wait_s + 1e-9)


def test_tokens_are_reserved_and_given_back() -> None:
    ledger, tenant = Ledger(), Tenant("a", requests=RateLimit(100.0, 100.0), tokens=RateLimit(10.0, 100.0))
    first = ledger.enter(tenant, 80, 0.0)
    with pytest.raises(RateLimited, match="10 tokens/s") as refused:
        ledger.enter(tenant, 30, 0.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    assert ledger.quotas(tenant, 0.0).requests.remaining == 99, "a refused request costs nothing"  # type: ignore[union-attr]
    ledger.settle(first, 20, 0.0)
    ledger.settle(ledger.enter(tenant, 30, 0.0), 30, 0.0)
    assert ledger.quotas(tenant, 0.0).tokens.remaining == 50  # type: ignore[union-attr]


def test_more_than_a_burst_reserves_the_burst_and_is_made_up_for() -> None:
    ledger, tenant = Ledger(), Tenant("a", tokens=RateLimit(10.0, 100.0))
    big = ledger.enter(tenant, 1000, 0.0)
    assert big.tokens == 100
    ledger.settle(big, 150, 0.0)
    with pytest.raises(RateLimited) as refused:
        ledger.enter(tenant, 1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(5.1)


def test_requests_at_once() -> None:
    ledger, tenant = Ledger(), Tenant("a", max_concurrent=1)
    first = ledger.enter(tenant, 10, 0.0)
    with pytest.raises(RateLimited, match="1 requests at once"):
        ledger.enter(tenant, 10, 5.0)
    ledger.enter(Tenant("b", max_concurrent=1), 10, 5.0)
    ledger.settle(first, 10, 6.0)
    ledger.enter(tenant, 10, 6.0)
    assert (ledger.num_running("a"), ledger.num_running("nobody")) == (1, 0)


def test_a_tenant_s_new_limits_hold_at_once() -> None:
    ledger = Ledger()
    under_way = ledger.enter(Tenant("a"), 50, 0.0)
    strict = Tenant("a", tokens=RateLimit(1.0, 40.0))
    ledger.enter(strict, 40, 0.0)
    with pytest.raises(RateLimited):
        ledger.enter(strict, 1, 0.0)
    ledger.settle(under_way, 5, 0.0)
    ledger.enter(Tenant("a"), 10**9, 0.0)
