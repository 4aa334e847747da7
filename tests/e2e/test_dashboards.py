"""A real service under load, and a real Prometheus that scrapes all of its processes: every query of every panel
returns data, the rules load, and a worker that is killed raises its alert.
"""

import json
import math
import re
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deploy.grafana.boards import BOARDS
from deploy.grafana.build import DEPLOY
from deploy.plain import PlainService, serve_plain
from deploy.spawned import POLL_S
from tests.fakes.prometheus import program

pytestmark = [pytest.mark.slow(seconds=25), pytest.mark.timeout(600)]

LISTENING = re.compile(r'msg="Listening on" address=(\S+)')
RATE_INTERVAL = "15s"
WAIT_S = 120.0
MODEL = ("--model", "builtin", "--transport", "grpc", "--kv-memory", "32MiB", "--model-name", "builtin")
PROMPT = list(range(3, 260))


@dataclass(frozen=True)
class Prometheus:
    """A running one, as Grafana sees it."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as got:
            return json.load(got)["data"]

    def has_data(self, expr: str) -> bool:
        """Whether some line of it has a number now. Raises HTTPError for an expression that is none."""
        results = self.get("query", query=expr)["result"]
        return any(math.isfinite(float(each["value"][1])) for each in results)


def wait_until_answering(url: str) -> None:
    """It listens before its storage is open, and says 503 meanwhile."""
    end_s = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except urllib.error.HTTPError as error:
            assert error.code == 503 and time.monotonic() < end_s, error
        time.sleep(POLL_S)


@contextmanager
def prometheus(targets: dict[str, list[tuple[str, dict[str, str]]]]) -> Iterator[Prometheus]:
    """Scrapes the `targets` (address and labels, by job) every second and evaluates Baton's rules as often."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yaml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [address], "labels": labels} for address, labels in each]}
            for job, each in targets.items()
        ],
    }
    with tempfile.TemporaryDirectory(prefix="baton-prometheus-") as folder:
        path = Path(folder) / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder}/data"]
        command.append("--web.listen-address=127.0.0.1:0")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if match := LISTENING.search(line):
                    break
            else:
                pytest.fail("".join(said))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            wait_until_answering(f"http://{match[1]}/-/ready")
            yield Prometheus(f"http://{match[1]}")
        finally:
            process.terminate()
            process.wait(30)


class Load(threading.Thread):
    """Clients that ask one after the other until they are told to stop; what fails is kept."""

    def __init__(self, service: PlainService, number: int) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.failures: list[str] = []
        self._service, self._number = service, number

    def run(self) -> None:
        turn = 0
        while not self.stopped.is_set():
            turn += 1
            prompt = PROMPT if turn % 2 else [self._number + 5, turn % 900, *PROMPT[:130]]
            body = {"model": "builtin", "prompt": prompt, "max_tokens": 60, "ignore_eos": True}
            try:
                self._service.post("/v1/completions", body)
            except (OSError, ValueError) as error:
                self.failures.append(str(error))


@contextmanager
def under_load(service: PlainService, num_clients: int = 4) -> Iterator[list[Load]]:
    clients = [Load(service, number) for number in range(num_clients)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join(60)


def queries() -> dict[str, str]:
    """Every expression, by dashboard and panel, with variables as when all is chosen."""
    found = {}
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                expr = query.expr.replace("$__rate_interval", RATE_INTERVAL)
                for name, _ in board.variables:
                    expr = expr.replace(f"${name}", ".*")
                assert "$" not in expr
                found[f"{board.title} / {panel.title} / {expr}"] = expr
    return found


def targets_of(service: PlainService) -> dict[str, list[tuple[str, dict[str, str]]]]:
    workers = [
        (worker["topology"]["metrics"], {"worker": worker["id"], "role": worker["roles"][0]})
        for worker in service.workers()
    ]
    return {"baton-router": [(service.url.removeprefix("http://"), {"router": "router-0"})], "baton-worker": workers}


def busy_decode_worker(service: PlainService, clients: list[Load]) -> str:
    """Waits for one that decodes for somebody."""
    end_s = time.monotonic() + WAIT_S
    while True:
        workers = service.workers()
        for worker in workers:
            if worker["requests"] and worker["roles"] == ["decode"]:
                return str(worker["id"])
        assert time.monotonic() < end_s, workers
        assert not any(client.failures for client in clients), clients[0].failures
        time.sleep(POLL_S)


def not_ready(service: PlainService) -> dict[str, str]:
    """Workers whose /ready does not say 200, and what it says."""
    said = {}
    for worker in service.workers():
        try:
            with urllib.request.urlopen(f"http://{worker['topology']['metrics']}/ready", timeout=10):
                pass
        except urllib.error.HTTPError as error:
            said[worker["id"]] = error.read().decode()
    return said


def wait_until_ready(service: PlainService) -> None:
    """A worker knows of its last pair with its next report, 0.1 s after the router at most."""
    end_s = time.monotonic() + WAIT_S
    while said := not_ready(service):
        assert time.monotonic() < end_s, said
        time.sleep(POLL_S)


def test_every_panel_has_data_and_a_killed_worker_raises_its_alert() -> None:
    workers = [("prefill_worker", *MODEL, "--worker-id", "prefill-0")]
    workers += [("decode_worker", *MODEL, "--worker-id", f"decode-{i}") for i in range(2)]
    with serve_plain(
        workers, ["--model", "builtin", "--model-name", "builtin", "--policy", "cost_always_hand_over"]
    ) as service:
        pids = dict(zip(("prefill-0", "decode-0", "decode-1"), service.worker_pids, strict=True))
        service.wait_whole()
        wait_until_ready(service)
        with prometheus(targets_of(service)) as watching, under_load(service) as clients:
            end_s = time.monotonic() + WAIT_S
            while not watching.has_data("baton_router_retries_total"):  # what comes next is to be seen as a change
                assert time.monotonic() < end_s, "the router was not scraped"
                time.sleep(POLL_S)
            victim = busy_decode_worker(service, clients)
            psutil.Process(pids[victim]).kill()
            missing, end_s = queries(), time.monotonic() + WAIT_S
            alerts: dict[str, Any] = {}
            while (missing or "BatonWorkerDown" not in alerts) and time.monotonic() < end_s:
                # Kept as they are seen: the worker is soon back.
                alerts |= {alert["labels"]["alertname"]: alert for alert in watching.get("alerts")["alerts"]}
                missing = {name: expr for name, expr in missing.items() if not watching.has_data(expr)}
                time.sleep(POLL_S)
            assert not missing, "\n".join(missing)
            lost = 'increase(baton_router_retries_total{cause="worker_lost"}[2m])'
            assert float(watching.get("query", query=lost)["result"][0]["value"][1]) > 0, "the first is seen, too"
            assert not any(client.failures for client in clients), "a killed worker is no client's business"
            assert alerts["BatonWorkerDown"]["annotations"]["summary"] == f"worker {victim} does not answer"
            assert "BatonPagesLeaked" not in alerts and "BatonRouterDown" not in alerts
            rules = [rule for group in watching.get("rules")["groups"] for rule in group["rules"]]
            assert len(rules) > 20 and not [rule for rule in rules if rule.get("lastError")]
