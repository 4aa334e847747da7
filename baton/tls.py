"""TLS of the `baton` command: options before the subcommand, or the environment; they hold for every door."""

import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import grpc
import typer

from engine.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files of a client."""

    ca: Path
    """Whose certificates the service may show."""
    cert: Path | None = None
    """For services that ask for one."""
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) is not (self.key is None):
            raise InvalidRequest("a certificate needs its key, and a key its certificate", param="tls-key")

    def channel(self) -> grpc.ChannelCredentials:
        """For Client and AsyncClient. Raises InvalidRequest for files that cannot be read."""
        try:
            parts = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)]
        except OSError as error:
            raise InvalidRequest(f"TLS file {error.filename}: {error.strerror}") from error
        return grpc.ssl_channel_credentials(*parts)

    def context(self) -> ssl.SSLContext:
        """For httpx. Raises InvalidRequest for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequest(f"TLS files {self.ca}, {self.cert}, {self.key}: {error}") from error
        return context


_OWN: ContextVar[ClientTls | None] = ContextVar("own_tls", default=None)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"baton {version('baton')}")
        raise typer.Exit


def tls_options(
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="BATON_TLS_CA", help="PEM: speak TLS; trust this authority.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="BATON_TLS_CERT", help="PEM: this client's certificate, if it needs one.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="BATON_TLS_KEY", help="PEM: its key.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Serve language models with prefill and decode apart, and talk to such a service."""
    if tls_ca is not None:
        _OWN.set(ClientTls(tls_ca, tls_cert, tls_key))
    elif tls_cert is not None:
        raise InvalidRequest("needs --tls-ca, too", param="tls-cert")


def own_tls() -> ClientTls | None:
    """What the running command was told."""
    return _OWN.get()


def own_channel() -> grpc.ChannelCredentials | None:
    """Of the running command. Raises InvalidRequest."""
    tls = own_tls()
    return None if tls is None else tls.channel()


def own_verify() -> ssl.SSLContext | bool:
    """What httpx takes as `verify`. Raises InvalidRequest."""
    tls = own_tls()
    return True if tls is None else tls.context()
