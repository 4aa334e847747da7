"""Frozen settings of the router core. Each part gets only its own."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When a worker, or a pair of workers, is routed around."""

    hung_after_s: float = 0.6
    """A worker says something at least every 200 ms; one that is silent for this long gets no work until it speaks."""
    peers_keep_s: float = 10.0
    """A worker whose session broke may come back; after this long its peers are told to forget it."""
    breaker_failures: int = 2
    """Failures in a row that open a breaker."""
    breaker_open_s: float = 1.0
    """How long a breaker stays open the first time; it doubles while probes fail."""
    breaker_max_open_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """How a call that lost a leg is tried again, always inside its own deadline."""

    base_s: float = 0.02
    """Wait before the second try in a row (the first is at once); it doubles with each one after."""
    max_s: float = 1.0
    max_worker_errors: int = 3
    """A call that workers answered with an error this often fails: the fault is likely its own."""
    max_unroutable_s: float = 30.0
    """A call that found no worker for this long fails instead of waiting for its deadline."""


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """How much the router takes on."""

    max_running: int = 4096
    """Calls on workers at once."""
    max_queued: int = 4096
    """Calls that wait for one of those places; one more is refused."""
    max_worker_queue_s: float | None = None
    """Calls wait here, too, while every worker has more than this of prompts before it; None sends them at once.
    See DispatchWindow.
    """


@dataclass(frozen=True, slots=True)
class HedgeConfig:
    """Whether calls whose first token is late are sent to a second pair of workers; see router.hedging."""

    max_share: float = 0.0
    """Of all calls, at most; 0 is off."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything that RouterCore is built from, except its random source and policy."""

    health: HealthConfig = field(default_factory=HealthConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    hedge: HedgeConfig = field(default_factory=HedgeConfig)
    public_feeds: bool = False
    """Read prefix events from workers' public feeds where they have one, not from their sessions."""
    feed_patience_s: float = 3.0
    """A public feed that has not been followed for this long is left for the session."""
    salt_key: bytes = field(default=b"", repr=False)
    """What tenants' cache salts are derived with; the same on every router in front of the same workers."""
