"""What each tenant has used of its limits, and whether one more request fits. Pure: the time is an argument.

A request takes one request, and its prompt plus all tokens that it may get, before anything is done for it; what it
did not get is given back when it ends. So tokens are never promised twice. A request that could use more than a whole
burst reserves the burst: what it used beyond that is charged at its end, and holds up the tenant's next one.

Limits hold for each router: several in front of the same workers share nothing.
"""

from dataclasses import dataclass

from engine.core.errors import Overloaded
from router.gateway.bucket import Bucket
from router.gateway.tenants import RateLimit, Tenant

_BUSY_RETRY_S = 1.0
"""Nobody knows when one of a tenant's own requests will end."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit as its client is told of it."""

    limit: int
    remaining: int
    reset_s: float
    """Until all of it is there again."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """A tenant's limits at one moment; None is no limit."""

    requests: Quota | None = None
    tokens: Quota | None = None


class RateLimited(Overloaded):
    """A tenant's own limit; `quotas` says which."""

    def __init__(self, message: str, *, retry_after_s: float, quotas: Quotas) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.quotas = quotas


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request under way has taken; settled once."""

    tenant: str
    tokens: float


@dataclass(slots=True)
class _Account:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_running: int = 0


class Ledger:
    """The accounts of all tenants that were seen: as many as the file ever named."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def num_running(self, tenant: str) -> int:
        """Requests of that tenant under way."""
        account = self._accounts.get(tenant)
        return account.num_running if account else 0

    def enter(self, tenant: Tenant, tokens: int, now: float) -> Reservation:
        """Take what a request of `tokens` tokens at most needs. Raises RateLimited, and takes nothing then."""
        self.check(tenant, now)
        account = self._account(tenant, now)
        reserved = 0.0
        if account.tokens:
            reserved = min(tokens, account.tokens.limit.burst)
            if wait_s := account.tokens.wait_s(reserved, now):
                self._refuse(tenant, f"{account.tokens.limit.per_s:g} tokens/s", wait_s, now)
            account.tokens.take(reserved, now)
        if account.requests:
            account.requests.take(1, now)
        account.num_running += 1
        return Reservation(tenant.name, reserved)

    def check(self, tenant: Tenant, now: float) -> None:
        """Whether a request could enter, its tokens aside. Raises RateLimited; takes nothing."""
        account = self._account(tenant, now)
        if tenant.max_concurrent is not None and account.num_running >= tenant.max_concurrent:
            self._refuse(tenant, f"{account.num_running} requests at once", _BUSY_RETRY_S, now)
        if account.requests and (wait_s := account.requests.wait_s(1, now)):
            self._refuse(tenant, f"{account.requests.limit.per_s:g} requests/s", wait_s, now)

    def charge(self, tenant: Tenant, now: float) -> None:
        """Take a request that will never enter."""
        account = self._account(tenant, now)
        if account.requests:
            account.requests.take(1, now)

    def _refuse(self, tenant: Tenant, limit: str, wait_s: float, now: float) -> None:
        message = f"the limit of {limit} is reached; try again in {wait_s:.3g} s"
        raise RateLimited(message, retry_after_s=wait_s, quotas=self.quotas(tenant, now))

    def settle(self, reservation: Reservation, used: int, now: float) -> None:
        """The request is over; it had `used` tokens of prompt and answer."""
        account = self._accounts[reservation.tenant]
        account.num_running -= 1
        if account.tokens:
            account.tokens.give_back(reservation.tokens - used, now)

    def quotas(self, tenant: Tenant, now: float) -> Quotas:
        """What is left of the tenant's limits."""
        account = self._account(tenant, now)
        return Quotas(_quota(account.requests, now), _quota(account.tokens, now))

    def _account(self, tenant: Tenant, now: float) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = _Account()
        account.requests = _follow(account.requests, tenant.requests, now)
        account.tokens = _follow(account.tokens, tenant.tokens, now)
        return account


def _follow(bucket: Bucket | None, limit: RateLimit | None, now: float) -> Bucket | None:
    """The bucket under the limit that holds now: the tenants' file may have changed."""
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.change(limit, now)
    return bucket


def _quota(bucket: Bucket | None, now: float) -> Quota | None:
    if bucket is None:
        return None
    return Quota(int(bucket.limit.burst), max(0, int(bucket.level(now))), bucket.full_s(now))
