"""A `baton serve` of one's own, as a child process: on free ports, known by its ready line, ended by SIGINT."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.core.errors import Unavailable

BATON = str(Path(sys.executable).parent / "baton")
READY = re.compile(r"Baton is ready: (?P<http>http://\S+) \(HTTP\), (?P<grpc>\S+) \(gRPC\)")
DOORS = re.compile(r"(?P<http>http://\S+) \(HTTP\), (?P<grpc>\S+) \(gRPC\)")
START_S = 240.0
POLL_S = 0.05
STOP_S = 5.0
"""What `baton serve` promises from Ctrl-C to the last process's end."""


@dataclass(frozen=True)
class Site:
    """A running service as its clients see it."""

    url: str
    """Of HTTP."""
    grpc: str
    """host:port."""

    def get(self, path: str) -> Any:
        """The JSON at `path`; HTTPError on other statuses than 2xx."""
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post JSON, get JSON."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def workers(self) -> list[dict[str, Any]]:
        """The workers of /status."""
        workers: list[dict[str, Any]] = self.get("/status")["workers"]
        return workers

    def wait_idle(self, timeout_s: float = 60.0) -> None:
        """Until no request is left and each page of each worker is free or cached; AssertionError says what is left."""
        end_s = time.monotonic() + timeout_s
        while True:
            status = self.get("/status")
            if not any(left_of(status).values()):
                return
            assert time.monotonic() < end_s, f"not idle: {status}"
            time.sleep(POLL_S)


@dataclass(frozen=True)
class Service(Site):
    """A `baton serve` and its processes."""

    process: subprocess.Popen[str]
    log: Path
    """Its standard error."""
    others: tuple[Site, ...] = ()
    """Its further routers."""

    def processes(self) -> list[psutil.Process]:
        """Every process of the service, the main one first."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]


def left_of(status: dict[str, Any]) -> dict[str, int]:
    """What an idle service's /status must not show: requests, and pages that are neither free nor cached."""
    left = {"requests": status["running_requests"] + status["queued_requests"], "pages": 0}
    for worker in status["workers"]:
        load = worker["load"]
        if load is None:  # it has just joined, and not said yet what it has
            left["requests"] += 1
            continue
        pages = load["pages_by_state"]
        left["requests"] += load["running_rows"] + load["queued_requests"]
        left["pages"] += worker["num_pages"] - pages["free"] - pages["cached"]
    return left


def environment() -> dict[str, str]:
    """One thread for each process, and nothing from the network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


@contextmanager
def serve(*flags: str) -> Iterator[Service]:
    """`baton serve` with `flags` on free ports. The block starts when it is ready and ends with its processes."""
    with tempfile.TemporaryDirectory(prefix="baton-spawned-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [BATON, "serve", "--port", "0", "--grpc-port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(),
                start_new_session=True,
                preexec_fn=_as_background_job,
            )
        try:
            match = _wait_ready(process, log)
            _, *others = [Site(doors["http"], doors["grpc"]) for doors in DOORS.finditer(match.string)]
            yield Service(match["http"], match["grpc"], process, log, tuple(others))
        finally:
            stop(process)


def _as_background_job() -> None:
    """Shells start background jobs with SIGINT ignored: a service must listen to it all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stop(process: subprocess.Popen[str], signal_number: int = signal.SIGINT) -> float:
    """End the service as a terminal would. Returns the seconds it took; kills what is left after twice the promise."""
    start_s = time.monotonic()
    if process.poll() is None:
        process.send_signal(signal_number)
    try:
        process.wait(2 * STOP_S)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
    return time.monotonic() - start_s


def _wait_ready(process: subprocess.Popen[str], log: Path) -> re.Match[str]:
    assert process.stdout is not None
    timer_s = time.monotonic() + START_S
    os.set_blocking(process.stdout.fileno(), True)
    while time.monotonic() < timer_s:
        line = process.stdout.readline()  # ends with the process, too
        if match := READY.search(line):
            return match
        if not line and process.poll() is not None:
            break
    raise Unavailable(f"baton serve did not get ready (status {process.poll()}):\n{log.read_text()}")
