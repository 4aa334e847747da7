import pytest

from engine.core.errors import Unauthenticated
from router.gateway.tenants import ApiKey, Tenant, TenantTable, make_key

KEY, KEPT = make_key(b"\x01" * 6, b"\x02" * 32)
OTHER_KEY, OTHER = make_key(b"\x03" * 6, b"\x04" * 32)
TABLE = TenantTable.of([(Tenant("acme"), [KEPT]), (Tenant("ops"), [ApiKey(OTHER.id, OTHER.sha256, operator=True)])])


def test_a_key_finds_its_tenant_and_nothing_of_it_is_kept() -> None:
    caller = TABLE.caller(f"Bearer {KEY}")
    assert (caller.tenant.name, caller.operator, caller.key_id) == ("acme", False, KEPT.id)
    assert TABLE.caller(f"bearer {OTHER_KEY}").operator
    assert KEY.rpartition("_")[2] not in repr(TABLE) + repr(KEPT)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY} x",
     f"Bearer baton_{KEPT.id}_{OTHER_KEY.rpartition('_')[2]}", f"Bearer baton_{KEPT.id}_", "Bearer baton__",
     f"Bearer {KEPT.sha256}", f"Bearer baton_{KEPT.id}_{KEPT.sha256}", f"Bearer baton_{'0' * 12}_{'0' * 64}",
     "Bearer \udcff", f"Bearer other_{KEY.partition('_')[2]}", "Bearer " + "x" * 100_000],
)  # fmt: skip
def test_anything_else_is_refused_in_the_same_words(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        TABLE.caller(header)
    words = "that key is not known here" if header else "this service needs a key: send it as Authorization: Bearer KEY"
    assert refused.value.message == words


def test_a_table_has_each_tenant_and_key_once() -> None:
    with pytest.raises(ValueError, match="key"):
        TenantTable.of([(Tenant("a"), [KEPT]), (Tenant("b"), [KEPT])])
    with pytest.raises(ValueError, match="tenant"):
        TenantTable.of([(Tenant("a"), []), (Tenant("a"), [])])


def test_no_request_is_more_urgent_than_its_tenant_may_be() -> None:
    assert [Tenant("a", max_priority=3).priority(asked) for asked in (-9, 3, 7)] == [3, 3, 7]
    assert Tenant("a").priority(-9) == -9
