"""Start, stop, and starts that must fail: what the operator sees and what is left behind."""

import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from deploy.spawned import BATON, STOP_S, Service, environment, serve, stop
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=50), pytest.mark.timeout(600)]

REFUSED_S = 240.0


def refused(*flags: str) -> str:
    """The one line of a start that must fail with status 2."""
    result = subprocess.run(
        [BATON, "serve", *flags], capture_output=True, text=True, timeout=REFUSED_S, env=environment(), check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("baton: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def ray_folders(service: Service) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"baton-ray-{service.process.pid}-*"))


def test_ctrl_c_ends_every_process_in_time() -> None:
    with serve("--model", str(tiny_checkpoint("llama"))) as service:
        processes = service.processes()
        assert len(processes) > 3
        assert len(ray_folders(service)) == 1
        seconds = stop(service.process, signal.SIGINT)
        assert service.process.returncode == 0, service.log.read_text()
        assert seconds < STOP_S
        _, alive = psutil.wait_procs(processes, timeout=0)
        assert not alive
        assert not ray_folders(service)


def test_sigterm_in_the_middle_of_requests_ends_every_process_in_time() -> None:
    """Of a worker that does both phases."""
    with serve("--model", str(tiny_checkpoint("llama")), "--colocated") as service:
        assert [worker["id"] for worker in service.workers()] == ["decode-0"]
        processes = service.processes()
        client = openai.OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0)
        model = client.models.list().data[0].id
        stream = client.completions.create(
            model=model, prompt=[5] * 40, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        assert stop(service.process, signal.SIGTERM) < STOP_S
        assert service.process.returncode == 0, service.log.read_text()
        assert not psutil.wait_procs(processes, timeout=0)[1]
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(stream)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        line = refused("--model", str(tiny_checkpoint("llama")), "--port", port, "--grpc-port", "0")
        assert f"127.0.0.1:{port}" in line
        assert "--port" in line


def test_a_missing_model_is_named() -> None:
    assert "/no/such/model" in refused("--model", "/no/such/model", "--port", "0", "--grpc-port", "0")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prefill", "0"], ["--prefill"]),
        (["--transport", "pigeon"], ["--transport", "pigeon"]),
        (["--kv-memory", "lots"], ["--kv-memory", "lots"]),
        (["--dtype", "int3"], ["--dtype", "int3"]),
    ],
)
def test_a_wrong_flag_is_named(flags: Sequence[str], words: Sequence[str]) -> None:
    line = refused(*flags)
    assert all(word in line for word in words), line


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused("--model", str(folder), "--port", "0", "--grpc-port", "0")


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    """Found by the workers, not by the look before the start: it must come out as one line all the same."""
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    line = refused("--model", str(folder), "--port", "0", "--grpc-port", "0")
    assert "model.safetensors" in line
    assert "mlp" in line
