"""Encryption of the public event feed: keys that follow from the cluster key, for ZMQ's CURVE.

Worker and reader must both know the worker's public key, and it is never sent: only who holds the cluster key, or was
given the public key that `python -m engine.wire.kv_curve` prints, gets past the handshake.
"""

import os
import sys
from hashlib import blake2b
from typing import Any

import zmq
from zmq.utils import z85

CLUSTER_KEY_VARIABLE = "BATON_CLUSTER_KEY"


def secret_key(cluster_key: bytes) -> bytes:
    """Of all workers of a cluster; 40 characters of Z85."""
    seed = blake2b(blake2b(cluster_key).digest(), digest_size=32, person=b"baton-kv-curve").digest()
    return bytes(z85.encode(seed))


def public_key(cluster_key: bytes) -> bytes:
    """What a reader needs."""
    return bytes(zmq.curve_public(secret_key(cluster_key)))


def protect_server(socket: "zmq.Socket[Any]", cluster_key: bytes) -> None:
    """To be called before `bind`."""
    socket.curve_server = True
    socket.curve_secretkey = secret_key(cluster_key)


def protect_client(socket: "zmq.Socket[Any]", cluster_key: bytes) -> None:
    """To be called before `connect`; the reader's own keys are drawn."""
    socket.curve_serverkey = public_key(cluster_key)
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


if __name__ == "__main__":
    key = os.environ.get(CLUSTER_KEY_VARIABLE)
    if not key:
        sys.exit(f"{CLUSTER_KEY_VARIABLE} is not set: the public key follows from the cluster key")
    sys.stdout.write(public_key(key.encode()).decode() + "\n")
