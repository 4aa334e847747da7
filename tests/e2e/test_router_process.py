"""`python -m router` as a process: its log, its signals, its tenants' file."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.server.config import CLUSTER_KEY_VARIABLE
from tests.fakes.grpc_worker import FakeCluster
from tests.fakes.tenants import bearer, file_of, key_of
from tests.fakes.text_models import write_family
from tests.fakes.workers import worker_info

pytestmark = pytest.mark.slow(seconds=4)
WAIT_S = 60.0


async def test_signals_and_log_of_a_router(tmp_path: Path) -> None:
    """SIGHUP reads the file again, SIGTERM lets answers end; the log is JSON, a line a request, without secrets."""
    tenants, log = tmp_path / "tenants.toml", tmp_path / "log"
    tenants.write_text(file_of("acme"))
    async with FakeCluster(b"a secret") as cluster:
        worker = await cluster.start(worker_info("w"))
        command = [sys.executable, "-m", "router", "--model", str(write_family(tmp_path, "byte_level"))]
        command += ["--model-name", "tiny", "--worker", worker.info.address, "--port", "0", "--grpc-port", "0"]
        command += ["--tenants", str(tenants), "--log-format", "json", "--drain-s", "30"]
        environment = dict(os.environ) | {CLUSTER_KEY_VARIABLE: "a secret"}
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        try:
            await _use(process, tenants)
        finally:
            process.kill()
            process.wait()
    written = log.read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    (request,) = [line for line in lines if line["logger"] == "baton.request" and line["outcome"] == "finished"]
    assert (request["tenant"], request["output_tokens"], request["prefill_worker"]) == ("acme", 300, "w")
    assert request["ttft_ms"] == pytest.approx(
        sum(request[f"{part}_ms"] for part in ("queue", "admit", "prefill", "deliver")), abs=0.003
    )
    assert key_of("acme").rpartition("_")[2] not in written and "a secret" not in written


async def _use(process: "subprocess.Popen[bytes]", tenants: Path) -> None:
    assert process.stdout is not None
    doors: dict[str, Any] = json.loads(await asyncio.to_thread(process.stdout.readline))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors['port']}", timeout=WAIT_S) as client:
        async with asyncio.timeout(WAIT_S):
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await client.get("/v1/models", headers=bearer("late"))).status_code == 401
        tenants.write_text(file_of("acme", "late"))
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            while (await client.get("/v1/models", headers=bearer("late"))).status_code != 200:
                await asyncio.sleep(0.02)
        body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 300, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body, headers=bearer("acme")) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in [line async for line in lines]
    assert await asyncio.to_thread(process.wait, WAIT_S) == 0
