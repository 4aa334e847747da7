"""A service as plain processes, as containers run it: no Ray, and a prefill worker with a second address for its peers.

That address is where a link that stalls can be put: everything in 127.0.0.0/8 is this machine.
"""

import json
import os
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

WORKER_HOST, LINK_HOST = "127.0.0.1", "127.0.0.2"
_ENGINE_FLAGS = ("--page-size", "--max-step-tokens", "--max-model-len", "--kv-memory", "--dtype", "--device", "--model")


@dataclass(frozen=True)
class PlainService:
    """One prefill worker, one decode worker, one router."""

    url: str
    grpc: str
    ports: list[int]
    """Where the prefill worker listens; peers are told LINK_HOST, where nobody forwards yet."""


@contextmanager
def serve_plain(flags: Sequence[str]) -> Iterator[PlainService]:
    """Pages move over gRPC. `flags` are those of `baton serve`; what only that knows is left out."""
    pairs = dict(zip(flags[::2], flags[1::2], strict=True))
    engine = [word for name in _ENGINE_FLAGS if name in pairs for word in (name, pairs[name])]
    worker = [*engine, "--transport", "grpc", "--log-level", "WARNING", "--host", WORKER_HOST]
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="baton-plain-") as folder, (Path(folder) / "log").open("w+") as log:
        key = {"BATON_CLUSTER_KEY": secrets.token_hex(16)}

        def start(module: str, *more: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *more],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment() | key,
                cwd=os.getcwd(),
            )
            processes.append(process)
            return process

        try:
            prefill = start("prefill_worker", *worker, "--advertise", LINK_HOST)
            decode = start("decode_worker", *worker)
            ports = [_ready(each, log.name)["address"].rpartition(":")[2] for each in (prefill, decode)]
            addresses = [f"{WORKER_HOST}:{port}" for port in ports]
            workers = [word for address in addresses for word in ("--worker", address)]
            router = start(
                "router",
                "--model",
                pairs["--model"],
                "--port",
                "0",
                "--grpc-port",
                "0",
                *workers,
                "--max-model-len",
                pairs["--max-model-len"],
                "--policy",
                pairs["--policy"],
            )
            doors = _ready(router, log.name)
            listening = psutil.Process(prefill.pid).net_connections("tcp")
            yield PlainService(
                f"http://127.0.0.1:{doors['port']}",
                f"127.0.0.1:{doors['grpc_port']}",
                sorted({each.laddr.port for each in listening if each.status == "LISTEN"}),
            )
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                try:
                    process.wait(2 * STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _ready(process: "subprocess.Popen[str]", log: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Unavailable(f"{process.args!r} ended with {process.wait()}:\n{Path(log).read_text()}")
    said: dict[str, Any] = json.loads(line)
    return said
