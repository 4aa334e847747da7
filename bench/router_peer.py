"""sglang-router (PyPI, Rust) for the side-by-side run, and workers that speak as SGLang does: SSE over HTTP.

`python -m bench.router_peer` is one such worker: a chunk with a token at once and one more every STEP_S. Prints one
JSON line with its address.
"""

import asyncio
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from bench.router_workers import STEP_S

MODULE = "sglang_router"
START_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class PeerRouter:
    """A running sglang-router."""

    url: str
    pid: int


def missing() -> str:
    """Why the peer cannot run, in words; empty when it can."""
    if importlib.util.find_spec(MODULE) is None:
        return f"did not run: {MODULE} cannot be imported; see PyPI sglang-router"
    return ""


@contextmanager
def serve_peer(num_workers: int, folder: Path) -> Iterator[PeerRouter]:
    """Workers and sglang-router with its cache_aware policy in front of them. Raises RuntimeError with its log."""
    processes: list[subprocess.Popen[str]] = []
    try:
        with (folder / "peer.log").open("w") as log:
            urls = []
            for _ in range(num_workers):
                worker = subprocess.Popen(
                    [sys.executable, "-m", "bench.router_peer"], stdout=subprocess.PIPE, stderr=log, text=True
                )
                processes.append(worker)
                assert worker.stdout is not None
                urls.append(json.loads(worker.stdout.readline())["url"])
            port, metrics = _free_port(), _free_port()
            command = [sys.executable, "-m", f"{MODULE}.launch_router", "--worker-urls", *urls]
            command += ["--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port)]
            command += ["--prometheus-port", str(metrics), "--log-level", "error"]
            router = subprocess.Popen(command, stdout=log, stderr=log, text=True)
            processes.append(router)
        _wait(f"http://127.0.0.1:{port}", router, folder / "peer.log")
        yield PeerRouter(f"http://127.0.0.1:{port}", router.pid)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    """The peer cannot be given port 0."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(url: str, router: "subprocess.Popen[str]", log: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and router.poll() is None:
        try:
            with urllib.request.urlopen(url + "/readiness", timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(_POLL_S)
    raise RuntimeError(f"sglang-router was not ready:\n{log.read_text()[-4000:]}")


# ---------------------------------------------------------------------------------------------------- worker


async def _completions(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(body["max_tokens"]):
        if number:
            await asyncio.sleep(STEP_S)
        choice = {"index": 0, "text": " a", "logprobs": None, "finish_reason": None, "matched_stop": None}
        event = {"id": "0" * 32, "object": "text_completion", "created": 0, "choices": [choice], "model": "bench"}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _info(_request: web.Request) -> web.Response:
    return web.json_response({"model_path": "bench", "model_id": "bench", "served_model_name": "bench"})


async def _models(_request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "bench", "object": "model"}]})


async def _serve() -> None:
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/completions", _completions)
    for path in ("/health", "/health_generate", "/get_model_info", "/get_server_info", "/model_info", "/server_info"):
        app.router.add_get(path, _info)
    app.router.add_get("/v1/models", _models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    port = runner.addresses[0][1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await asked.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve())
