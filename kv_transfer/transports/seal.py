"""Descriptors hold what is needed to read a worker's memory (addresses, remote keys): for cluster members only.

A sealed descriptor is nonce (12 bytes) | AES-256-GCM of the descriptor, with the transport's name and the worker's
peer_key as associated data, so that it cannot be shown under another name.
"""

import os
from collections.abc import Sequence
from hashlib import blake2b

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.core.errors import InvalidRequest, Unauthenticated
from kv_transfer.ticket import MIN_KEY_BYTES
from kv_transfer.transports.base import Transport

_NONCE_BYTES = 12


def seal_descriptors(transports: Sequence[Transport], name: str, key: bytes) -> tuple[tuple[str, bytes], ...]:
    """(transport name, sealed descriptor) of every transport of the worker named `name` (peer_key).

    Raises:
        InvalidRequest: the cluster key is too short.
    """
    cipher = _cipher(key)
    sealed = []
    for transport in transports:
        nonce = os.urandom(_NONCE_BYTES)
        text = cipher.encrypt(nonce, transport.descriptor(), _label(transport.name, name))
        sealed.append((transport.name, nonce + text))
    return tuple(sealed)


def open_descriptors(sealed: Sequence[tuple[str, bytes]], name: str, key: bytes) -> tuple[tuple[str, bytes], ...]:
    """The descriptors of the worker named `name`.

    Raises:
        Unauthenticated: damaged, of another worker, or sealed with another cluster key.
    """
    cipher = _cipher(key)
    opened = []
    for transport, data in sealed:
        try:
            text = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _label(transport, name))
        except (InvalidTag, ValueError) as error:
            raise Unauthenticated(
                f"the {transport} descriptor of {name} does not open: damaged, or sealed with another cluster key"
            ) from error
        opened.append((transport, text))
    return tuple(opened)


def _cipher(key: bytes) -> AESGCM:
    if len(key) < MIN_KEY_BYTES:
        raise InvalidRequest(f"the cluster key has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return AESGCM(blake2b(key, digest_size=32, person=b"baton descriptor").digest())


def _label(transport: str, name: str) -> bytes:
    return f"{transport}\0{name}".encode()
