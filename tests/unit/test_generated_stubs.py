"""The checked-in stubs are what proto/ generates."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_checked_in_stubs_match_proto(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_stubs", ROOT / "tools" / "generate_stubs.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    fresh = tool.generate(tmp_path)

    assert fresh, "proto/ holds no .proto file"
    stale = [path.name for path in fresh if path.read_bytes() != (ROOT / "engine" / "wire" / path.name).read_bytes()]
    assert not stale, f"run `make proto`: {stale}"
    extra = {path.name for path in (ROOT / "engine" / "wire").glob("*_pb2*")} - {path.name for path in fresh}
    assert not extra, f"no .proto file makes {sorted(extra)}"
