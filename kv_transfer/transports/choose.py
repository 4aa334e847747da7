"""From the name that an operator typed to the transports that a worker tries, the preferred one first."""

import logging

from engine.core.errors import TransferFailed
from engine.server.config import LOOPBACK
from engine.wire.tls import TlsFiles
from kv_transfer.transports.base import PagePool, Transport
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.local import LocalHub, LocalTransport
from kv_transfer.transports.nixl import NixlTransport

logger = logging.getLogger(__name__)

PROCESS_HUB = LocalHub()
"""Joins the workers of this process that move pages by plain copies."""


def open_transports(
    choice: str,
    pool: PagePool,
    name: str,
    key: bytes,
    bind: str,
    advertise: str = "",
    tls: TlsFiles | None = None,
) -> list[Transport]:
    """The transports of one worker. Each pair of workers uses the first that both have and that passes its proof.

    Args:
        choice: auto (NIXL where it can be used, and gRPC), nixl, grpc or local.
        name: this worker's own peer_key.
        key: the cluster key.
        bind: host:port that gRPC listens on; port 0 takes a free one. Of a loopback address NIXL, too, listens there
            alone.
        advertise: where peers reach that host, when that is another name.
        tls: of gRPC, on both sides.

    Raises:
        TransferFailed: the transport that was asked for cannot be used here.
    """
    if choice == "local":
        return [LocalTransport(PROCESS_HUB, name, pool)]
    transports: list[Transport] = []
    if choice in ("auto", "nixl"):
        try:
            only_here = bind.rpartition(":")[0].strip("[]") in LOOPBACK  # UCX would listen on every address
            transports.append(NixlTransport(pool, name, only_here=only_here))
        except TransferFailed as error:
            if choice == "nixl":
                raise
            logger.info("worker=%s pages move over gRPC: %s", name, error)
    if choice in ("auto", "grpc"):
        transports.append(GrpcTransport(pool, name, key, bind, advertise or None, tls))
    return transports
