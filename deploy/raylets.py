"""A Ray cluster of one's own on this machine: a raylet a node, each with an address of its own, ended by process id."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.spawned import environment
from engine.core.errors import Unavailable

RAY = str(Path(sys.executable).parent / "ray")
OBJECT_STORE_BYTES = 80 << 20
START_S = 120.0
POLL_S = 0.05
STARTED = "Ray runtime started."
DETECTION = {
    # A lost node, whose address refuses, is noticed in about three seconds instead of fifteen; a slow one has a minute.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "6",
}


@dataclass(frozen=True)
class NodeSpec:
    """What one node offers."""

    cpus: int = 4
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Raylet:
    """One node. `process` is its `ray start --block`."""

    address: str
    """127.0.0.x: what its workers listen on."""
    process: "subprocess.Popen[bytes]"
    said: Path
    """What that printed."""

    number: int
    """Of the nodes that share its session's folder."""

    again: "Callable[[], subprocess.Popen[bytes]]"
    """Start it once more."""

    def wait_up(self) -> None:
        """Until it has joined; Ray gives it 30 s, so on a busy machine it may be started once more.

        Raises Unavailable with what it said when it does not join.
        """
        try:
            self._wait(lambda: STARTED in self.said.read_text())
        except Unavailable:
            if self.process.poll() is None:
                raise
            self.process = self.again()
            self._wait(lambda: STARTED in self.said.read_text())

    def wait_named(self) -> None:
        """Until its sockets are there. Raylets that start side by side would choose the same names, and one would die
        of it. Raises Unavailable as `wait_up`.
        """
        sockets = self.said.parent / "session_latest" / "sockets"
        self._wait(lambda: len(list(sockets.glob("raylet*"))) > self.number)

    def _wait(self, is_there: Callable[[], bool]) -> None:
        end_s = time.monotonic() + START_S
        while not is_there():
            if self.process.poll() is not None or time.monotonic() > end_s:
                said = f"{self.said.read_text()}\n{self._raylet_said()}"
                raise Unavailable(f"the node at {self.address} did not come up:\n{said}")
            time.sleep(POLL_S)

    def _raylet_said(self) -> str:
        logs = sorted(self.said.parent.glob("session_2*/logs/raylet*.*"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in logs)

    def pids(self) -> set[int]:
        """Of its processes."""
        main = psutil.Process(self.process.pid)
        return {main.pid, *(child.pid for child in main.children(recursive=True))}

    def lose(self) -> float:
        """All its processes at once, as a host that loses power. Returns when, on time.monotonic."""
        main = psutil.Process(self.process.pid)
        processes = [*main.children(recursive=True), main]
        for process in processes:
            _signal(process, signal.SIGSTOP)  # nobody may say goodbye
        for process in processes:
            _signal(process, signal.SIGKILL)
        lost_s = time.monotonic()
        psutil.wait_procs(processes, timeout=10)
        self.process.wait(10)
        return lost_s


@dataclass
class Raylets:
    """The nodes, the head first, and what a client needs in its environment."""

    address: str
    environment: dict[str, str]
    folder: str
    nodes: list[Raylet] = field(default_factory=list)

    def add(self, spec: NodeSpec, place: str = "") -> Raylet:
        """One more node, at a loopback address; `Raylet.wait_up` waits until it has joined."""
        place = place or f"127.0.0.{len(self.nodes) + 1}"
        words = ["start", f"--address={self.address}", f"--node-ip-address={place}"]
        return self._start(place, words, spec)

    def lose(self, address: str) -> float:
        """The node at that address is gone, unannounced. Returns when, on time.monotonic."""
        return next(node for node in self.nodes if node.address == address).lose()

    def actors(self) -> list[str]:
        """Titles of the processes that actors run in."""
        titles = []
        for node in self.nodes:
            if node.process.poll() is None:
                for process in psutil.Process(node.process.pid).children(recursive=True):
                    title = _title(process)
                    if title.startswith("ray::") and not title.startswith(_RAYS_OWN):
                        titles.append(title)
        return titles

    def _start(self, place: str, words: Sequence[str], spec: NodeSpec) -> Raylet:
        options = [f"--num-cpus={spec.cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--block"]
        options.append(f"--dashboard-agent-listen-port={_free_port()}")
        if spec.resources:
            options.append(f"--resources={_json(spec.resources)}")
        if spec.labels:
            options.append(f"--labels={','.join(f'{key}={value}' for key, value in spec.labels.items())}")
        said = Path(self.folder) / f"node-{len(self.nodes)}"

        def launch() -> "subprocess.Popen[bytes]":
            with said.open("w") as output:
                return subprocess.Popen(
                    [RAY, *words, "--disable-usage-stats", *options],
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

        node = Raylet(place, launch(), said, len(self.nodes), launch)
        self.nodes.append(node)
        return node

    def close(self) -> None:
        """End everything that this object started."""
        processes: list[psutil.Process] = []
        for node in self.nodes:
            if node.process.poll() is None:
                main = psutil.Process(node.process.pid)
                processes += [*main.children(recursive=True), main]
        for process in processes:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
        for node in self.nodes:
            node.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


_RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _json(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in resources.items()) + "}"


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def pid_at(port: int) -> int:
    """The process that listens there. Raises Unavailable."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            assert connection.pid is not None
            return int(connection.pid)
    raise Unavailable(f"nobody listens on {port}")


@contextmanager
def raylets(*specs: NodeSpec) -> Iterator[Raylets]:
    """A cluster with one node for each of `specs`, the head first. Needs Linux: it uses 127.0.0.2 and so on.

    Raises Unavailable when one does not come up.
    """
    port = _free_port()
    shared = environment() | DETECTION
    shared |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as in the embedded cluster
        "RAY_raylet_start_wait_time_s": str(int(START_S)),
    }
    folder = tempfile.mkdtemp(prefix="baton-raylets-")
    cluster = Raylets(f"127.0.0.1:{port}", shared, folder)
    try:
        head = ["start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
        cluster._start("127.0.0.1", [*head, f"--temp-dir={folder}"], specs[0])
        cluster.nodes[0].wait_up()
        for spec in specs[1:]:
            cluster.add(spec).wait_named()
        for node in cluster.nodes:
            node.wait_up()
        yield cluster
    finally:
        cluster.close()
