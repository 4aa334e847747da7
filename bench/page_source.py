"""A prefill worker's memory in a process of its own, for benchmarks and tests: `python -m bench.page_source JSON`.

Says one line of JSON when it can be read, then obeys lines on its standard input until that ends:
`bump PAGE` makes the page belong to somebody else; `reuse COUNT PAUSE_S` rewrites the first pages over and over, with a
pause after each.
"""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from hashlib import shake_128
from pathlib import Path

import torch

from engine.core.types import KVLayout, WorkerInfo
from engine.runtime.kv_pool import KVPool
from kv_transfer.manager import TransferManager
from kv_transfer.transports.base import PagePool, Transport, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.nixl import NixlTransport

KEY = b"benchmarks and tests only"
BLOCK = 4096
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What the process is to be."""

    kind: str
    """Of TRANSPORTS: the ones that join processes."""
    layout: KVLayout
    num_pages: int
    incarnation: int = 1
    port: int = 0
    """Of gRPC."""
    device: str = "cpu"


def make_pool(spec: SourceSpec, device: str) -> KVPool:
    """The real pool, on any device."""
    return KVPool(spec.layout, spec.num_pages, [torch.device(device)] * spec.layout.tp_size)


def make_transport(kind: str, pool: PagePool, name: str, port: int = 0) -> Transport:
    """One end of a transport that joins processes: grpc or nixl."""
    return NixlTransport(pool, name) if kind == "nixl" else GrpcTransport(pool, name, KEY, f"127.0.0.1:{port}")


def content(page: int, generation: int, num_bytes: int) -> bytes:
    """What a page holds under one owner: a block that names both, over and over."""
    block = shake_128(f"{page} {generation}".encode()).digest(BLOCK)
    return (block * -(-num_bytes // BLOCK))[:num_bytes]


def write_page(pool: PagePool, page: int) -> None:
    """The next owner's KV. Odd generations are being written, even ones are final: only those come on tickets."""
    layout = pool.layout
    pool.generations[page] += 1
    pool.write(page, 0, layout.num_layers, content(page, pool.generations[page] + 1, layout.page_bytes))
    pool.generations[page] += 1


class SourceProcess:
    """The other end: starts the process and speaks with it."""

    def __init__(self, spec: SourceSpec) -> None:
        """Wait until it can be read. RuntimeError if it ends instead."""
        self.spec = spec
        command = [sys.executable, "-m", "bench.page_source", json.dumps(asdict(spec))]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = json.loads(self._next("{"))
        self.address: str = said["address"]
        """host:port of gRPC."""
        transports = tuple((name, bytes.fromhex(data)) for name, data in said["transports"])
        self.peer = peer_key("p", spec.incarnation)
        self.info = WorkerInfo(
            "p", spec.incarnation, ("prefill",), "", "m", spec.layout, spec.num_pages, 1 << 20, transports
        )

    def tell(self, command: str) -> None:
        """Have a command obeyed."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self._next("ok")

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()

    def _next(self, start: str) -> str:
        """The next line that begins so; libraries say things of their own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"the source process ended with status {self.process.wait()}")


def _reuse(pool: PagePool, count: int, pause_s: float, stop: threading.Event) -> None:
    while not stop.is_set():
        for page in range(count):
            write_page(pool, page)
            stop.wait(pause_s)


def _serve(spec: SourceSpec) -> None:
    pool = make_pool(spec, spec.device)
    for page in range(spec.num_pages):
        write_page(pool, page)
    transport = make_transport(spec.kind, pool, peer_key("p", spec.incarnation), spec.port)
    address = transport.descriptor().decode() if spec.kind == "grpc" else ""
    manager = TransferManager(pool, [transport], ("p", spec.incarnation), KEY)
    sealed = [(name, data.hex()) for name, data in manager.descriptors]
    print(json.dumps({"transports": sealed, "address": address}), flush=True)
    stop = threading.Event()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "bump":
            pool.generations[int(arguments[0])] += 1
        elif command == "reuse":
            arguments_of = (pool, int(arguments[0]), float(arguments[1]), stop)
            threading.Thread(target=_reuse, args=arguments_of, daemon=True).start()
        print("ok", flush=True)
    stop.set()
    manager.close()


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    _serve(SourceSpec(**{**fields, "layout": KVLayout(**fields["layout"])}))
