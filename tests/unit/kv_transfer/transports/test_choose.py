import logging

import psutil
import pytest

from engine.core.errors import TransferFailed
from kv_transfer.host_pool import HostPool
from kv_transfer.transports import nixl
from kv_transfer.transports.base import Transport
from kv_transfer.transports.choose import open_transports
from tests.contract.transport_rigs import LAYOUT

KEY = b"sixteen bytes or more"


def names(choice: str) -> list[str]:
    transports: list[Transport] = open_transports(choice, HostPool(LAYOUT, 2), f"{choice}@1", KEY, "127.0.0.1:0")
    for transport in transports:
        transport.close()
    return [transport.name for transport in transports]


@pytest.mark.parametrize(
    ("choice", "opened"), [("auto", ["nixl", "grpc"]), ("nixl", ["nixl"]), ("grpc", ["grpc"]), ("local", ["local"])]
)
def test_choices(choice: str, opened: list[str]) -> None:
    assert names(choice) == opened


def test_without_nixl_auto_is_grpc_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(backend: str, *, only_here: bool) -> None:
        raise TransferFailed("NIXL cannot be imported: no module")

    monkeypatch.setattr(nixl, "Nixl", missing)
    with caplog.at_level(logging.INFO):
        assert names("auto") == ["grpc"]
    assert "gRPC: NIXL cannot be imported: no module" in caplog.text
    with pytest.raises(TransferFailed, match="cannot be imported"):
        names("nixl")


def test_a_worker_on_loopback_can_be_reached_from_nowhere_else() -> None:
    """UCX authenticates nobody, and left alone it listens on every address of the host."""

    def listened_on() -> set[tuple[str, int]]:
        return {
            connection.laddr for connection in psutil.Process().net_connections("tcp") if connection.status == "LISTEN"
        }

    before = listened_on()
    (transport,) = open_transports("nixl", HostPool(LAYOUT, 2), "here@1", KEY, "127.0.0.1:0")
    opened = listened_on() - before
    transport.close()
    assert opened and {host for host, _ in opened} == {"127.0.0.1"}
