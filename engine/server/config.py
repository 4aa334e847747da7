"""What one worker process is assembled from."""

from dataclasses import dataclass, field

from engine.core.errors import InvalidRequest
from engine.runtime.config import EngineConfig
from engine.server.kv_events.config import FeedConfig
from engine.wire.tls import TlsFiles

CLUSTER_KEY_VARIABLE = "BATON_CLUSTER_KEY"
"""The environment variable with the secret that all processes of a cluster share."""
LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
TRANSPORTS = ("auto", "nixl", "grpc", "local")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker: its engine, where it listens, and how it moves pages."""

    engine: EngineConfig
    worker_id: str
    """Unique in the cluster; a restarted worker keeps it and gets a new incarnation."""
    cluster_key: bytes = field(repr=False)
    """Shared by all workers of a cluster, at least 16 bytes: seals tickets and transport descriptors."""
    model_name: str = ""
    """What clients call the model; the last part of engine.model when empty."""
    host: str = "127.0.0.1"
    """Listened on, and told to routers and peers unless `advertise` is set."""
    port: int = 0
    """0 takes a free one."""
    advertise: str = ""
    """The host that others reach this worker by, where that is not `host`: needed when listening on 0.0.0.0."""
    metrics_port: int = 0
    """Of Prometheus' /metrics, /live and /ready; 0 takes a free one."""
    page_port: int = 0
    """What the gRPC transport serves pages on; 0 takes a free one."""
    transport: str = "auto"
    """One of TRANSPORTS."""
    drain_grace_s: float = 25.0
    """How long a worker that is asked to leave by SIGTERM waits for its requests to move or to end."""
    topology: tuple[tuple[str, str], ...] = ()
    kv_events: FeedConfig | None = None
    """Where prefix events are published for everybody; None: only routers hear them."""
    tls: TlsFiles | None = None
    """Mutual TLS of sessions with routers and of pages over gRPC; None: nothing is encrypted."""

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise InvalidRequest(f"transport must be one of {', '.join(TRANSPORTS)}, not {self.transport!r}")
        if self.host in ("0.0.0.0", "::", "") and not self.advertise:
            raise InvalidRequest(
                f"listening on {self.host!r} needs `advertise`: the host that others reach this one by"
            )
        feed = self.kv_events
        if self.tls is not None and feed is not None and not feed.encrypted and feed.host not in LOOPBACK:
            raise InvalidRequest("prefix events hold prompts: with TLS in the cluster publish them by curve://")
        if not self.worker_id:
            raise InvalidRequest("worker_id must not be empty")
