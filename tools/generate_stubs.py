"""Generate the protobuf and gRPC stubs of proto/baton/v1 into a folder: `python tools/generate_stubs.py engine/wire`.

The files import each other as engine.wire.*: protoc is told that proto/baton/v1 is the folder engine/wire, because a
package `baton.v1` would lie inside the client package and a top-level package `proto` belongs to another distribution.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto" / "baton" / "v1"
PACKAGE = "engine/wire"


def generate(target: Path) -> list[Path]:
    """Write the stubs of every .proto file into `target` and return their paths. RuntimeError when protoc fails."""
    names = [f"{PACKAGE}/{path.name}" for path in sorted(SOURCES.glob("*.proto"))]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}={folder}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
        status = protoc.main(["protoc", f"-I{PACKAGE}={SOURCES}", *outputs, *names])
        if status != 0:
            raise RuntimeError(f"protoc failed with status {status}")
        written = []
        for path in sorted((Path(folder) / PACKAGE).iterdir()):
            copy = target / path.name
            copy.write_bytes(path.read_bytes())
            written.append(copy)
    return written


if __name__ == "__main__":
    for stub in generate(Path(sys.argv[1])):
        print(stub)
