"""Settings of one router process. Apart from the server, so that who only sends them does not load its doors."""

from dataclasses import dataclass, field
from pathlib import Path

from engine.core.errors import InvalidRequest
from engine.wire.tls import TlsFiles
from router.config import RouterConfig
from router.doors.config import DoorConfig


@dataclass(frozen=True, slots=True)
class RouterTls:
    """Who is shown which certificate."""

    clients: TlsFiles | None = None
    """At the HTTP and gRPC doors. With an authority in it, clients must show a certificate, too."""
    cluster: TlsFiles | None = None
    """Mutual, with the workers."""

    @property
    def scheme(self) -> str:
        """Of the HTTP door's URL."""
        return "http" if self.clients is None else "https"


def tls_of(cert: Path | None, key: Path | None, client_ca: Path | None, cluster: Path | None) -> RouterTls:
    """From flags. Raises InvalidRequest for a certificate without key, or an authority without certificate."""
    if (cert is None) is not (key is None):
        raise InvalidRequest("a certificate needs its key, and a key its certificate", param="tls-key")
    if client_ca is not None and cert is None:
        raise InvalidRequest("needs --tls-cert and --tls-key, too", param="tls-client-ca")
    clients = None if cert is None or key is None else TlsFiles(cert, key, client_ca)
    return RouterTls(clients, None if cluster is None else TlsFiles.folder(cluster))


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Who may call a router, and what it tells of it."""

    tenants: Path | None = None
    """See router.tenants_file; None lets everybody in as one anonymous tenant."""
    otlp_endpoint: str | None = None
    """Base URL of a collector of traces, for which the extra `otel` must be installed."""
    drain_notice_s: float = 0.0
    """How long health says 503 while new connections are still heard: for whoever has to find out."""
    log_format: str = ""
    """Of the line for each request of a router that a service starts; none are written when it is empty."""
    tls: RouterTls = field(default_factory=RouterTls)


@dataclass(frozen=True, slots=True)
class RouterServerConfig:
    """One router process."""

    model: Path
    """The checkpoint's folder; only its config, tokenizer and chat template are read."""
    model_name: str
    """What clients call it."""
    cluster_key: bytes = field(repr=False)
    """Derives tenants' cache salts and opens the admin port."""
    max_model_len: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    """Of HTTP; 0 takes a free one."""
    grpc_port: int = 8001
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    """Of router.admin; None: workers are added by `RunningRouter` only."""
    worker_names: tuple[str, ...] = ()
    """NAME:PORT of names whose addresses are the workers', as router.discovery follows them."""
    policy: str = "cost"
    """One of router.policies.registry.POLICY_NAMES."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    doors: DoorConfig = field(default_factory=DoorConfig)
    limits: RouterConfig = field(default_factory=RouterConfig)
    """Its salt_key is not used: the cluster key is."""
