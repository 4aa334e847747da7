import pytest

from engine.core.errors import InvalidRequest, Unauthenticated
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.seal import open_descriptors, seal_descriptors
from tests.contract.transport_rigs import LAYOUT

KEY = b"sixteen bytes or more"


class Speaking(LocalTransport):
    def descriptor(self) -> bytes:
        return b"address and remote key"


@pytest.fixture
def sealed() -> tuple[tuple[str, bytes], ...]:
    return seal_descriptors([Speaking(LocalHub(), "w@1", HostPool(LAYOUT, 1))], "w@1", KEY)


def test_members_of_the_cluster_open_what_was_sealed(sealed: tuple[tuple[str, bytes], ...]) -> None:
    assert open_descriptors(sealed, "w@1", KEY) == (("local", b"address and remote key"),)
    assert b"remote key" not in sealed[0][1]


def test_it_cannot_be_shown_under_another_name(sealed: tuple[tuple[str, bytes], ...]) -> None:
    for data, name, key in [
        (sealed, "w@2", KEY),
        (sealed, "w@1", KEY + b"x"),
        ([("grpc", sealed[0][1])], "w@1", KEY),
        ([("local", b"")], "w@1", KEY),
        ([("local", sealed[0][1][:-1])], "w@1", KEY),
    ]:
        with pytest.raises(Unauthenticated, match="does not open"):
            open_descriptors(data, name, key)


def test_each_sealing_is_another(sealed: tuple[tuple[str, bytes], ...]) -> None:
    again = seal_descriptors([Speaking(LocalHub(), "w@1", HostPool(LAYOUT, 1))], "w@1", KEY)
    assert again != sealed


def test_short_keys_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="16"):
        open_descriptors([], "w@1", b"short")
