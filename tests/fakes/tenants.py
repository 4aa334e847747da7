"""Tenants with keys, for tests."""

from router.gateway.tenants import ApiKey, Tenant, TenantTable, make_key


def key_of(tenant: str, number: int = 0) -> str:
    """What a client of `tenant` sends."""
    return _made(tenant, number)[0]


def table_of(*tenants: Tenant, operators: tuple[str, ...] = ()) -> TenantTable:
    """Two keys for each."""
    return TenantTable.of((tenant, [_kept(tenant.name, number, operators) for number in (0, 1)]) for tenant in tenants)


def bearer(tenant: str, number: int = 0) -> dict[str, str]:
    """Headers of its requests."""
    return {"authorization": f"Bearer {key_of(tenant, number)}"}


def file_of(*tenants: str, operators: tuple[str, ...] = (), lines: str = "") -> str:
    """The tenants' file with the same keys; `lines` are said of each tenant."""
    text = ""
    for tenant in tenants:
        text += f"[tenants.{tenant}]\n{lines}\n"
        for number in (0, 1):
            kept = _kept(tenant, number, operators)
            text += f'[[tenants.{tenant}.keys]]\nid = "{kept.id}"\nsha256 = "{kept.sha256}"\n'
            text += f"operator = {str(kept.operator).lower()}\n"
    return text


def _kept(tenant: str, number: int, operators: tuple[str, ...]) -> ApiKey:
    kept = _made(tenant, number)[1]
    return ApiKey(kept.id, kept.sha256, tenant in operators)


def _made(tenant: str, number: int) -> tuple[str, ApiKey]:
    name = f"{number}{tenant}".encode()
    return make_key(name.ljust(6, b"-")[:6], name.ljust(32, b"-"))
