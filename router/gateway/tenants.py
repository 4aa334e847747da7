"""Who may call, and with what rights: tenants, their keys, and how a key is found without telling how near it was."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from engine.core.errors import Unauthenticated

KEY_PREFIX = "baton"
KEY_ID_BYTES = 6
SECRET_BYTES = 32
MAX_KEY_CHARS = 256
_NOBODY = sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket's settings: `per_s` in the long run, `burst` at once. Of requests or of tokens."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer: what it may use of the service. None is no limit."""

    name: str
    weight: float = 1.0
    """Its share of a busy service, relative to others'."""
    max_priority: int | None = None
    """The most urgent (smallest) priority that its requests may have; more urgent ones get this one."""
    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    """Prompt and answer tokens."""
    max_concurrent: int | None = None
    """Requests at once."""
    ttft_slo_s: float | None = None
    """A request whose first token is expected later than this is refused at once."""

    def priority(self, asked: int) -> int:
        """The priority that a request gets which asks for `asked`."""
        return asked if self.max_priority is None else max(asked, self.max_priority)


ANONYMOUS = Tenant("")
"""Everybody, where no tenants are named."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of one key: never its secret. The secret is random, so a plain hash of it cannot be guessed."""

    id: str
    sha256: str
    """Of the secret, hexadecimal."""
    operator: bool = False
    """May read /status."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client."""

    tenant: Tenant = ANONYMOUS
    operator: bool = False
    key_id: str = ""


OPEN_TO_ALL = Caller(operator=True)
"""Whoever calls a service without tenants."""


def make_key(id: bytes, secret: bytes) -> tuple[str, ApiKey]:
    """(what the client gets, what is kept) of KEY_ID_BYTES and SECRET_BYTES random bytes."""
    return f"{KEY_PREFIX}_{id.hex()}_{secret.hex()}", ApiKey(id.hex(), sha256(secret.hex().encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class TenantTable:
    """All tenants and keys of one reading of the file; replaced as a whole when it changes."""

    tenants: tuple[Tenant, ...]
    _by_id: dict[str, tuple[ApiKey, Tenant]] = field(repr=False)

    @classmethod
    def of(cls, entries: Iterable[tuple[Tenant, Iterable[ApiKey]]]) -> "TenantTable":
        """Raises ValueError for a tenant or a key that is there twice."""
        tenants: list[Tenant] = []
        by_id: dict[str, tuple[ApiKey, Tenant]] = {}
        for tenant, keys in entries:
            if any(other.name == tenant.name for other in tenants):
                raise ValueError(f"tenant {tenant.name!r} is there twice")
            tenants.append(tenant)
            for key in keys:
                if key.id in by_id:
                    raise ValueError(f"key {key.id!r} is there twice")
                by_id[key.id] = (key, tenant)
        return cls(tuple(tenants), by_id)

    def caller(self, authorization: str | None) -> Caller:
        """Who sent that `Authorization` header. Raises Unauthenticated, in the same words whatever is wrong with a key.

        The key's id is looked up; its secret is compared in a time that does not depend on where it differs, also when
        there is no such id.
        """
        if not authorization:
            raise Unauthenticated("this service needs a key: send it as Authorization: Bearer KEY")
        scheme, _, given = authorization.partition(" ")
        prefix, _, rest = given.strip()[:MAX_KEY_CHARS].partition("_")
        id, _, secret = rest.partition("_")
        entry = self._by_id.get(id)
        expected = entry[0].sha256 if entry else _NOBODY
        same = hmac.compare_digest(sha256(secret.encode(errors="replace")).hexdigest(), expected)
        if not (same and entry and scheme.lower() == "bearer" and prefix == KEY_PREFIX):
            raise Unauthenticated("that key is not known here")
        return Caller(entry[1], entry[0].operator, entry[0].id)
