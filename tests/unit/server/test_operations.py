"""The operators' port of a worker against clients that open connections and say nothing."""

import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from engine.server.operations import MAX_CONNECTIONS, OperationsServer
from engine.server.readiness import Readiness

WAIT_S = 20.0


@pytest.fixture
def server() -> Iterator[OperationsServer]:
    server = OperationsServer(CollectorRegistry(), Readiness(lambda: 0.0), "127.0.0.1", 0)
    yield server
    server.close()


def live(server: OperationsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/live", timeout=WAIT_S) as response:
        text: str = response.read().decode()
    return text


def test_stalled_connections_keep_nobody_out(server: OperationsServer, capfd: pytest.CaptureFixture[str]) -> None:
    stalled = []
    for _ in range(2 * MAX_CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", server.port), WAIT_S)
        connection.sendall(b"GET /live HTTP/1.1\r\nx: ")
        stalled.append(connection)
    assert live(server) == "ok\n"
    for connection in stalled[:MAX_CONNECTIONS]:  # the oldest were cut for the newer ones
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass
    for connection in stalled:
        connection.close()
    assert live(server) == "ok\n"
    assert capfd.readouterr().err == "", "a client that stalls is no news"
