"""A service as plain processes, as containers run it: workers and a router, without Ray and without restarts."""

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.spawned import STOP_S, environment
from engine.core.errors import Unavailable

HOST = "127.0.0.1"


@dataclass(frozen=True)
class PlainService:
    """Running processes: the workers in the order in which they were asked for."""

    url: str
    grpc: str
    worker_pids: tuple[int, ...]


@contextmanager
def serve_plain(workers: Sequence[Sequence[str]], router: Sequence[str]) -> Iterator[PlainService]:
    """Module and flags of each worker, and flags of the router; ports are free ones. Ends with its processes.

    Raises Unavailable with the log when one does not start.
    """
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="baton-plain-") as folder:
        log = Path(folder) / "log"
        shared = environment() | {"BATON_CLUSTER_KEY": secrets.token_hex(16)}

        def start(command: Sequence[str]) -> None:
            with log.open("a") as stderr:
                words = [sys.executable, "-m", *command, "--log-level", "WARNING"]
                process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=shared)
            processes.append(process)

        try:
            for worker in workers:
                start(worker)
            addresses = [_ready(process, log)["address"].rpartition(":")[2] for process in processes]
            named = [word for port in addresses for word in ("--worker", f"{HOST}:{port}")]
            start(["router", "--port", "0", "--grpc-port", "0", *named, *router])
            doors = _ready(processes[-1], log)
            pids = tuple(process.pid for process in processes[:-1])
            yield PlainService(f"http://{HOST}:{doors['port']}", f"{HOST}:{doors['grpc_port']}", pids)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                _end(process)


def listening_ports(pid: int) -> list[int]:
    """Every TCP port that the process serves."""
    connections = psutil.Process(pid).net_connections("tcp")
    return sorted({each.laddr.port for each in connections if each.status == "LISTEN"})


def _ready(process: "subprocess.Popen[str]", log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Unavailable(f"{process.args!r} ended with {process.wait()}:\n{log.read_text()}")
    said: dict[str, Any] = json.loads(line)
    return said


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(2 * STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
