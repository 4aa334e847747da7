import os
from pathlib import Path

import pytest

from engine.core.errors import InvalidRequest
from router.gateway.tenants import RateLimit
from router.tenants_file import TenantsFile, read_tenants
from tests.fakes.tenants import bearer, file_of

LINES = """
weight = 2
max_priority = 1
requests_per_s = 50
tokens_per_s = 2000.5
token_burst = 9000
max_concurrent = 7
ttft_slo_s = 1.5
"""


def test_everything_that_can_be_said_of_a_tenant(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(file_of("acme", lines=LINES) + file_of("ops", operators=("ops",)))
    table = read_tenants(path)
    acme, ops = table.tenants
    assert (acme.weight, acme.max_priority, acme.max_concurrent, acme.ttft_slo_s) == (2.0, 1, 7, 1.5)
    assert (acme.requests, acme.tokens) == (RateLimit(50.0, 50.0), RateLimit(2000.5, 9000.0))
    assert (ops.weight, ops.max_priority, ops.requests, ops.tokens, ops.max_concurrent) == (1.0, None, None, None, None)
    assert table.caller(bearer("ops")["authorization"]).operator
    assert not table.caller(bearer("acme", 1)["authorization"]).operator


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[tenants.a", "is not TOML"),
        ("", "tenants: Field required"),
        ("[tenants.a]\nweigth = 2", "tenants.a.weigth: Extra inputs"),
        ("[tenants.a]\nweight = 0", "tenants.a.weight: Input should be greater than 0"),
        ("[tenants.a]\ntokens_per_s = nan", "tenants.a.tokens_per_s"),
        ("[tenants.a]\nmax_concurrent = 0", "tenants.a.max_concurrent"),
        ('[tenants.a]\nkeys = [{id = "ab", sha256 = "secret"}]', "tenants.a.keys.0.sha256"),
        ('[tenants."a b"]', "make a tenant's name"),
        (file_of("a") + "[tenants.b]\n" + file_of("a").partition("\n\n")[2].replace("tenants.a", "tenants.b"), "twice"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_quoted(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        read_tenants(path)
    assert complaint in refused.value.message and "secret" not in refused.value.message


def test_a_file_is_read_again_when_it_is_another_one(tmp_path: Path) -> None:
    path, new = tmp_path / "tenants.toml", tmp_path / "new"
    path.write_text(file_of("acme"))
    file = TenantsFile(path)
    assert not file.changed()
    new.write_text(file_of("beta"))
    os.replace(new, path)
    assert file.changed()
    assert [tenant.name for tenant in file.read().tenants] == ["beta"] and not file.changed()
    path.write_text("nonsense")
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            file.read()
        assert [tenant.name for tenant in file.table.tenants] == ["beta"]
        assert not file.changed(), "said once"
    path.unlink()
    assert file.changed()
