"""The checked-in stubs are what proto/ generates."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_checked_in_stubs_match_proto(tmp_path: Path) -> None:
    # In a process of its own: protoc's extension crashes beside the other native libraries that a test run has loaded.
    subprocess.run([sys.executable, ROOT / "tools" / "generate_stubs.py", tmp_path], check=True)
    fresh = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert fresh, "proto/ holds no .proto file"
    stale = [name for name, text in fresh.items() if text != (ROOT / "engine" / "wire" / name).read_bytes()]
    assert not stale, f"run `make proto`: {stale}"
    extra = {path.name for path in (ROOT / "engine" / "wire").glob("*_pb2*")} - set(fresh)
    assert not extra, f"no .proto file makes {sorted(extra)}"
