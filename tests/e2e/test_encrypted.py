"""A service of real processes with everything on: TLS at the doors, mutual TLS inside, tenants; and silent logs.

Every process logs all that it can (DEBUG, and gRPC's own), and no secret is anywhere in what they wrote.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.client import Client
from baton.tls import ClientTls
from tests.e2e.test_workers import ROOT, prompt
from tests.fakes.certificates import Authority
from tests.fakes.checkpoints import tiny_checkpoint
from tests.fakes.tenants import bearer, file_of, key_of

pytestmark = pytest.mark.slow(seconds=12)

KEY = "the-key-of-this-cluster-0123456789abcdef"
WAIT_S = 120.0


@dataclass
class Running:
    """Its doors, what its clients trust, and where its processes write."""

    http_port: int
    grpc_port: int
    tls: ClientTls
    logs: list[Path]
    private_keys: list[Path]


@contextmanager
def process(log: Path, *command: str) -> Iterator[dict[str, object]]:
    """What it says when it is ready."""
    environment = os.environ | {"BATON_CLUSTER_KEY": KEY, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "INFO"}
    arguments = [sys.executable, "-m", *command, "--log-level", "DEBUG"]
    with log.open("w") as errors:
        started = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=ROOT, text=True
        )
        try:
            assert started.stdout is not None
            line = started.stdout.readline()
            assert line, log.read_text()[-2000:]
            errors.write(line)
            yield json.loads(line)
        finally:
            started.terminate()
            started.wait(WAIT_S)


@contextmanager
def serving(folder: Path) -> Iterator[Running]:
    inside, outside = Authority("inside"), Authority("outside")
    for name in ("p", "d", "r"):
        inside.write(folder / name)
    door, client = outside.write(folder / "door"), outside.write(folder / "client")
    tenants = folder / "tenants.toml"
    tenants.write_text(file_of("acme") + file_of("ops", operators=("ops",)))
    model = ("--model", str(tiny_checkpoint("llama")), "--model-name", "tiny")
    few = ("--kv-memory", "4MiB", "--transport", "grpc")
    logs = [folder / f"{name}.log" for name in ("p", "d", "r")]
    tls = ("--cluster-tls", str(folder / "p")), ("--cluster-tls", str(folder / "d"))
    with (
        process(logs[0], "prefill_worker", *model, *few, *tls[0]) as prefill,
        process(logs[1], "decode_worker", *model, *few, *tls[1]) as decode,
        process(
            logs[2], "router", *model, "--port=0", "--grpc-port=0", "--tenants", str(tenants),
            "--worker", str(prefill["address"]), "--worker", str(decode["address"]),
            "--cluster-tls", str(folder / "r"), "--tls-cert", str(door.cert), "--tls-key", str(door.key),
            "--tls-client-ca", str(door.ca), "--policy", "cost_always_hand_over", "--log-format", "json",
        ) as router,
    ):  # fmt: skip
        assert client.ca is not None
        shown = ClientTls(client.ca, client.cert, client.key)
        private = [folder / name / "tls.key" for name in ("p", "d", "r", "door")]
        yield Running(int(str(router["port"])), int(str(router["grpc_port"])), shown, logs, private)


def test_everything_on_serves_and_says_no_secret(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        url = f"https://localhost:{running.http_port}"
        with httpx.Client(base_url=url, verify=running.tls.context(), timeout=WAIT_S) as http:
            workers: list[dict[str, Any]] = []
            while not any(peer["ready"] for worker in workers for peer in worker["peers"]):
                workers = http.get("/status", headers=bearer("ops")).raise_for_status().json()["workers"]
            assert http.get("/status", headers=bearer("acme")).status_code == 403
            assert http.get("/v1/models", headers={"authorization": f"Bearer {key_of('acme')}x"}).status_code == 401
        target = f"localhost:{running.grpc_port}"
        with Client(target, api_key=key_of("acme"), credentials=running.tls.channel()) as client:
            result = client.generate(prompt(64), max_tokens=6, temperature=0.0, ignore_eos=True)
            (answer,) = result.answers
            assert len(answer.tokens) == 6
            assert answer.timing.prefill_worker and answer.timing.prefill_worker != answer.timing.decode_worker
        logs, private = running.logs, [path.read_text() for path in running.private_keys]
    written = "\n".join(log.read_text() for log in logs)
    assert all(log.stat().st_size > 200 for log in logs), "they do log"
    secrets = [KEY, KEY.encode().hex(), base64.b64encode(KEY.encode()).decode(), key_of("acme"), key_of("ops")]
    secrets += [line for text in private for line in text.splitlines() if not line.startswith("-----")]
    assert not [secret for secret in secrets if secret in written]
