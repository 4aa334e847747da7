"""`ray job submit` runs the same service on a Ray cluster that exists already, with token authentication on."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.raylets import NodeSpec, Raylet, Raylets, pid_at
from deploy.spawned import READY, environment
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=50), pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S = 240.0
POLL_S = 0.2


@dataclass(frozen=True)
class RayCluster:
    dashboard: str
    environment: dict[str, str]
    pinned: Raylet
    """The node that offers what routers look for, as the chart's head does."""

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / "ray"), *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )

    def job(self, verb: str, *arguments: str) -> str:
        """The command line; it imports Ray for seconds."""
        result = self.run("job", verb, "--address", self.dashboard, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def get(self, path: str) -> Any:
        """From the job API, which the command line uses, too."""
        headers = {"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """`ray start --head` with its own token, ports and folder, and a second node. The job's python is this
    one, by PATH.
    """
    folder = tempfile.mkdtemp(prefix="baton-head-")
    port, dashboard = free_port(), free_port()
    cluster_environment = environment() | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    head = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *("--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}"),
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=cluster_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    others = Raylets(f"127.0.0.1:{port}", cluster_environment, tempfile.mkdtemp(prefix="baton-node-"))
    try:
        pinned = others.add(NodeSpec(cpus=2, resources={"baton_router": 1}), "127.0.0.2")
        running = RayCluster(f"http://127.0.0.1:{dashboard}", cluster_environment, pinned)
        _wait_for_jobs(running, head)
        pinned.wait_up()
        yield running
    finally:
        others.close()
        head.terminate()
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_jobs(cluster: RayCluster, head: "subprocess.Popen[bytes]") -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            cluster.get("")
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(POLL_S)
        assert head.poll() is None, "ray start ended"
        assert time.monotonic() < end_s, "the job API did not come up"


def test_the_service_runs_as_a_job(cluster: RayCluster) -> None:
    name = "baton-test"
    flags = ("--model", str(tiny_checkpoint("llama")), "--port", "0", "--grpc-port", "0", "--max-model-len", "512")
    entrypoint = ("python", "-m", "deploy.job", *flags)
    cluster.job("submit", "--submission-id", name, "--no-wait", "--working-dir", ".", "--", *entrypoint)
    end_s = time.monotonic() + START_S
    while not (match := READY.search(logs := cluster.get(f"{name}/logs")["logs"])):
        assert cluster.get(name)["status"] in ("PENDING", "RUNNING"), logs
        assert time.monotonic() < end_s, logs
        time.sleep(POLL_S)
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 4, "model": tiny_checkpoint("llama").name}).encode()
    request = urllib.request.Request(match["http"] + "/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["usage"]["completion_tokens"] > 0
    assert pid_at(int(match["http"].rpartition(":")[2])) in cluster.pinned.pids(), "the router is where clients look"
    cluster.job("stop", name)
    assert cluster.get(name)["status"] == "STOPPED"
