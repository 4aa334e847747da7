"""A service as plain processes, as containers run it: workers and a router, without Ray and without restarts."""

import json
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.spawned import POLL_S, START_S, STOP_S, Site, environment
from engine.core.errors import Unavailable

HOST = "127.0.0.1"


@dataclass(frozen=True)
class PlainService(Site):
    """Running processes: the workers in the order in which they were asked for."""

    worker_pids: tuple[int, ...]

    def wait_whole(self) -> None:
        """Until all workers are ready and each decode worker can pull from all others; AssertionError after START_S."""
        end_s = time.monotonic() + START_S
        while not _is_whole(workers := self.workers(), len(self.worker_pids)):
            assert time.monotonic() < end_s, workers
            time.sleep(POLL_S)


@contextmanager
def serve_plain(workers: Sequence[Sequence[str]], router: Sequence[str]) -> Iterator[PlainService]:
    """Module and flags of each worker, and flags of the router; ports are free ones. Ends with its processes.

    All start side by side. When the block begins, the router knows the workers, but may not have joined them yet.
    Raises Unavailable with the log when one does not start.
    """
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="baton-plain-") as folder:
        log = Path(folder) / "log"
        key = secrets.token_hex(16)
        shared = environment() | {"BATON_CLUSTER_KEY": key}

        def start(command: Sequence[str]) -> None:
            with log.open("a") as stderr:
                words = [sys.executable, "-m", *command, "--log-level", "WARNING"]
                process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=shared)
            processes.append(process)

        try:
            for worker in workers:
                start(worker)
            start(["router", "--port", "0", "--grpc-port", "0", "--admin-port", "0", *router])
            *up, doors = [_ready(process, log) for process in processes]
            for said in up:
                _tell(doors["admin_port"], key, f"{HOST}:{said['address'].rpartition(':')[2]}")
            pids = tuple(said["pid"] for said in up)
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


def _is_whole(workers: Sequence[dict[str, Any]], num_workers: int) -> bool:
    ready = {worker["id"] for worker in workers if worker["state"] == "ready"}
    pulls = [
        {worker["id"], *(peer["id"] for peer in worker["peers"] if peer["ready"])}
        for worker in workers
        if "decode" in worker["roles"]
    ]
    return len(ready) == num_workers and all(ready <= each for each in pulls)


def _tell(admin_port: int, key: str, address: str) -> None:
    """The router about a worker."""
    headers = {"authorization": f"Bearer {key}"}
    body = json.dumps({"address": address}).encode()
    request = urllib.request.Request(f"http://{HOST}:{admin_port}/admin/workers", body, headers)
    with urllib.request.urlopen(request, timeout=10):
        pass


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
