"""As the chart's pods run: user 10001, no rights, a root file system that nobody writes to, and two folders to write.

The processes get a mount name space of their own, which takes root; the one right that is left to them is to read what
root installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="takes root and util-linux"),
]

ROOT = Path(__file__).resolve().parents[2]
USER = "10001"
ENTER = """
set -e
mount --make-rprivate /
mount --bind / /
mount -o remount,ro,bind /
mount -t tmpfs -o mode=1777 tmpfs "$HOME"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
exec setpriv --reuid $USER --regid $USER --clear-groups --inh-caps=-all,+dac_read_search \
  --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search "$@"
"""


@contextmanager
def confined(folder: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of this interpreter; `folder` is what it may write to."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "USER": USER}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/hub", "TRITON_CACHE_DIR": f"{folder}/triton"}
    environment |= {"BATON_CLUSTER_KEY": "a cluster key for tests only"}
    process = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", ENTER, "bash", sys.executable, *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def said(process: "subprocess.Popen[str]") -> dict[str, object]:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    found: dict[str, object] = json.loads(line)
    return found


WRITER = """
import json, os, pathlib
def writes(folder):
    try:
        return bool(pathlib.Path(folder, "probe").write_text("x"))
    except OSError:
        return False
print(json.dumps([os.getuid(), *map(writes, ("/etc", "/tmp", os.environ["HOME"], "/dev/shm"))]), flush=True)
input()
"""


def test_confinement_confines(tmp_path: Path) -> None:
    with confined(tmp_path, "-c", WRITER) as process:
        assert said(process) == [int(USER), False, False, True, True]


def test_a_worker_and_a_router_run(tmp_path: Path) -> None:
    folders = tmp_path / "worker", tmp_path / "router"
    for folder in folders:
        folder.mkdir()
    worker_flags = ("--model", "builtin", "--model-name", "builtin", "--kv-memory", "32MiB")
    router_flags = ("--model", "builtin", "--model-name", "builtin", "--port", "0", "--grpc-port", "0")
    with confined(folders[0], "-m", "decode_worker", *worker_flags) as worker:
        up = said(worker)
        status = Path(f"/proc/{up['pid']}/status").read_text()
        assert re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE) == [USER]
        with confined(folders[1], "-m", "router", *router_flags, "--worker", str(up["address"])) as router:
            url = f"http://127.0.0.1:{said(router)['port']}"
            body = json.dumps({"model": "builtin", "prompt": "Return a", "max_tokens": 4, "timeout_s": 60}).encode()
            with urlopen(f"{url}/live", timeout=10) as response:
                assert response.status == 200
            request = Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
            with urlopen(request, timeout=90) as response:
                assert json.load(response)["usage"]["completion_tokens"] > 0
