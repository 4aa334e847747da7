"""Clients of the operations port that stall: nobody who probes waits for them, and they hold only so many threads."""

import socket
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from engine.server.operations import MAX_CONNECTIONS, OperationsServer
from engine.server.readiness import Readiness


def test_many_stalled_clients_keep_no_probe_waiting_and_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.server.operations._Handler.timeout", 600.0)  # none is cut off for its own slowness
    server = OperationsServer(CollectorRegistry(), Readiness(lambda: 0.0), "127.0.0.1", 0)
    num_before = threading.active_count()
    stalled = []
    try:
        for _ in range(3 * MAX_CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            client.sendall(b"GET /live HTTP/1.1\r\nx-slow: ")
            stalled.append(client)
        for path in ("/live", "/metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as response:
                assert response.status == 200
        assert stalled[0].recv(1) == b"", "the oldest was cut off, long before its own time"
        assert all(client.recv(1) == b"" for client in stalled[: 2 * MAX_CONNECTIONS])
        assert threading.active_count() - num_before <= MAX_CONNECTIONS + 1
    finally:
        for client in stalled:
            client.close()
        server.close()
