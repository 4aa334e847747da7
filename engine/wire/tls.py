"""TLS of every gRPC server and channel: whose certificate, which authority, and new files taken up while it runs.

Inside a cluster both sides show a certificate of the cluster's own authority. Peers are reached by addresses that come
and go, so servers are verified by one fixed name, SERVER_NAME, which each certificate carries as a DNS name.
"""

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from engine.core.errors import InvalidRequest

logger = logging.getLogger(__name__)

SERVER_NAME = "baton"
"""DNS name in the certificate of each process of a cluster."""

Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; read again when they change."""

    cert: Path
    """With its chain, the own certificate first."""
    key: Path
    ca: Path | None
    """Whose certificates the other side must show. None on a server: it need not show any."""

    @classmethod
    def folder(cls, path: Path) -> "TlsFiles":
        """As Kubernetes mounts a secret of type kubernetes.io/tls: tls.crt, tls.key, ca.crt."""
        return cls(path / "tls.crt", path / "tls.key", path / "ca.crt")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.cert, self.key) if self.ca is None else (self.cert, self.key, self.ca)


@dataclass(frozen=True, slots=True, repr=False)
class Material:
    """What the files hold."""

    cert: bytes
    key: bytes
    ca: bytes | None


def read(files: TlsFiles) -> Material:
    """The files, once they have been found to fit together. Raises InvalidRequest that names the file or the fault."""
    try:
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        check.load_cert_chain(files.cert, files.key)
        if files.ca is not None:
            check.load_verify_locations(files.ca)
        parts = [path.read_bytes() for path in files.paths]
    except OSError as error:  # ssl.SSLError is one, and names no file
        raise InvalidRequest(f"TLS files {', '.join(map(str, files.paths))}: {error}") from error
    return Material(parts[0], parts[1], parts[2] if files.ca is not None else None)


class Watch:
    """Notices that files were replaced. Asked at each new connection, so it looks at their status only."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidRequest when what is there now cannot be used."""
        self._files = files
        self._seen = self._signature()
        self.material = read(files)
        """The last that could be used."""

    def renewed(self) -> bool:
        """Whether `material` is another one than at the last call. Files that do not fit together change nothing."""
        seen = self._signature()
        if seen == self._seen:
            return False
        try:
            material = read(self._files)
        except InvalidRequest as error:
            logger.error("the certificate stays as it was: %s", error.message)
            return False
        self._seen = seen
        if material == self.material:
            return False
        self.material = material
        logger.info("new connections get the certificate in %s", self._files.cert)
        return True

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_status(path) for path in self._files.paths)


def _status(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Of a server that takes up new files by itself. Raises InvalidRequest."""
    watch = Watch(files)

    def configuration() -> Any:
        material = watch.material
        return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.ca)

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        lambda: configuration() if watch.renewed() else None,
        require_client_authentication=files.ca is not None,
    )


def listen(server: grpc.aio.Server, address: str, files: TlsFiles | None) -> int:
    """Open a port, with TLS where there are files. Raises InvalidRequest for them, RuntimeError for the port."""
    if files is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, server_credentials(files)))


def channel_credentials(files: TlsFiles | None) -> grpc.ChannelCredentials | None:
    """Of one channel inside the cluster, by the files as they are now. Raises InvalidRequest."""
    if files is None:
        return None
    material = read(files)
    return grpc.ssl_channel_credentials(material.ca, material.key, material.cert)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.aio.Channel:
    """A channel inside the cluster."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    named = [*options, ("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.aio.secure_channel(address, credentials, options=named)
