"""A prefill worker's memory in a process of its own: `python -m tests.contract.source_process TRANSPORT INCARNATION`.

Says one line of JSON when it can be read, then obeys lines on its standard input until that ends:
`bump PAGE` makes the page belong to somebody else; `reuse` rewrites the first pages over and over.
"""

import json
import sys
import threading
from hashlib import shake_128

from engine.core.types import KVLayout
from kv_transfer.host_pool import HostPool
from kv_transfer.manager import TransferManager
from kv_transfer.transports.base import PagePool, Transport, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.nixl import NixlTransport

KEY = b"a cluster key for tests only"
LAYOUT = KVLayout("m", num_layers=8, num_kv_heads=2, head_dim=64, page_size=16, dtype="float32")
NUM_PAGES = 256
NUM_REUSED = 32
BLOCK = 4096


def make_transport(kind: str, pool: PagePool, name: str, port: int = 0) -> Transport:
    """One end of a transport that joins processes."""
    return NixlTransport(pool, name) if kind == "nixl" else GrpcTransport(pool, name, KEY, f"127.0.0.1:{port}")


def content(page: int, generation: int) -> bytes:
    """What a page holds under one owner: a block that names both, over and over."""
    block = shake_128(f"{page} {generation}".encode()).digest(BLOCK)
    return block * (LAYOUT.page_bytes // BLOCK)


def write(pool: HostPool, page: int) -> None:
    """The next owner's KV. Odd generations are being written, even ones are final: only those come on tickets."""
    pool.generations[page] += 1
    pool.write(page, 0, LAYOUT.num_layers, content(page, pool.generations[page] + 1))
    pool.generations[page] += 1


def reuse(pool: HostPool, stop: threading.Event) -> None:
    while not stop.is_set():
        for page in range(NUM_REUSED):
            write(pool, page)
            stop.wait(0.0005)


def main(kind: str, incarnation: int, port: int) -> None:
    pool = HostPool(LAYOUT, NUM_PAGES)
    for page in range(NUM_PAGES):
        write(pool, page)
    transport = make_transport(kind, pool, peer_key("p", incarnation), port)
    address = transport.descriptor().decode() if kind == "grpc" else ""
    manager = TransferManager(pool, [transport], ("p", incarnation), KEY)
    sealed = [(name, data.hex()) for name, data in manager.descriptors]
    print(json.dumps({"transports": sealed, "address": address}), flush=True)  # noqa: T201
    stop = threading.Event()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "bump":
            pool.generations[int(arguments[0])] += 1
        elif command == "reuse":
            threading.Thread(target=reuse, args=(pool, stop), daemon=True).start()
        print("ok", flush=True)  # noqa: T201
    stop.set()
    manager.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
