"""A Ray that does not start, as the operator sees it: one line and status 2."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from deploy.cluster import EMBEDDED, Cluster
from engine.core.errors import InvalidRequest, Unavailable
from tests.fakes.checkpoints import tiny_checkpoint

LATE = "The current node timed out during startup. This could\nhappen because the GCS has become overloaded."
START = """
import sys
import ray
from baton.cli import main

words = sys.argv.pop()

def late(**options):
    raise Exception(words)

ray.init = late
main()
"""


def test_a_start_that_times_out_is_one_line_and_status_2() -> None:
    command = [sys.executable, "-c", START, "serve", "--model", str(tiny_checkpoint("llama")), "--port", "0"]
    command += ["--grpc-port", "0", LATE]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[3]
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert result.stderr.splitlines()[-1] == "baton: Ray did not start: " + LATE.replace("\n", " ")


@pytest.mark.parametrize(
    ("address", "words"), [(EMBEDDED, "Ray did not start"), ("head:6379", "cannot connect to Ray at head:6379")]
)
def test_what_failed_is_named_and_nothing_is_left(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")

    def late(**_options: object) -> None:
        raise Exception(LATE)

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(Unavailable, match=f"{words}: The current node timed out"), Cluster(address):
        pytest.fail("it did not start")
    assert not list(tmp_path.iterdir())


def test_a_key_that_ray_would_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_CLUSTER_KEY", "of-the-environment")
    environment = {"env_vars": {"OTHER": "1"}}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=environment))
    assert Cluster(EMBEDDED).key() == "of-the-environment"
    environment["env_vars"]["BATON_CLUSTER_KEY"] = "of-the-environment"
    with pytest.raises(InvalidRequest, match="BATON_CLUSTER_KEY is in the job's runtime_env, which Ray") as refused:
        Cluster(EMBEDDED).key()
    assert "of-the-environment" not in refused.value.message
