"""The gateway of one router process: its tenants' file, and where records of requests go."""

import asyncio
import logging
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter

from engine.core.errors import InvalidRequest
from router.config import RouterConfig
from router.doors.gateway import Gateway
from router.doors.request_log import RequestLog
from router.gateway.record import RecordSink, RequestRecord
from router.server_config import GatewayConfig, RouterServerConfig
from router.tenants_file import TenantsFile

logger = logging.getLogger(__name__)

LOOK_S = 1.0
WORKER_QUEUE_S = 0.25
"""With tenants: seconds of prompts that a worker may have before it, see DispatchWindow."""


def limits_of(config: RouterServerConfig) -> RouterConfig:
    """The core's limits in this process: shares between tenants need calls that can still be shared out."""
    limits = replace(config.limits, salt_key=config.cluster_key)
    if config.gateway.tenants is None or limits.admission.max_worker_queue_s is not None:
        return limits
    return replace(limits, admission=replace(limits.admission, max_worker_queue_s=WORKER_QUEUE_S))


class GatewayProcess:
    """Owns the file and what sends traces."""

    def __init__(self, config: GatewayConfig, registry: CollectorRegistry) -> None:
        """Raises InvalidRequest for a file that cannot be read, or for traces without the package that sends them."""
        self._file = None if config.tenants is None else TenantsFile(config.tenants)
        sinks: list[RecordSink] = [RequestLog(), TenantMetrics(registry)]
        self._tracing = None
        if config.otlp_endpoint is not None:
            try:
                from router.tracing import otlp_tracing  # heavy, and an extra: only who asks for it pays
            except ImportError as error:
                needs = f"--otlp-endpoint needs the extra otel (pip install -e '.[otel]'): {error}"
                raise InvalidRequest(needs, param="otlp_endpoint") from error
            self._tracing = otlp_tracing(config.otlp_endpoint)
            sinks.append(self._tracing)
        self.gateway = Gateway(self._file.table if self._file else None, sinks)

    def reload(self) -> None:
        """Read the file again. Raises InvalidRequest; then everything stays as it was."""
        if self._file is not None:
            self.gateway.tenants = self._file.read()
            logger.info("read %s: %d tenants", self._file.path, len(self.gateway.tenants.tenants))

    async def watch(self) -> None:
        """Read the file again when it changes, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._file is not None and self._file.changed():
                try:
                    self.reload()
                except InvalidRequest as error:
                    logger.error("the tenants stay as they were: %s", error.message)

    def close(self) -> None:
        """Send what is left of the traces."""
        if self._tracing is not None:
            self._tracing.close()


class TenantMetrics:
    """A RecordSink: requests and tokens by tenant. There are as many labels as tenants in the file."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "baton_tenant_requests", "Requests by tenant and outcome", ("tenant", "outcome"), registry=registry
        )
        self._tokens = Counter("baton_tenant_tokens", "By tenant and kind", ("tenant", "kind"), registry=registry)

    def done(self, record: RequestRecord) -> None:
        """Count one request."""
        self._requests.labels(record.tenant, record.outcome).inc()
        if record.output_tokens:
            self._tokens.labels(record.tenant, "prompt").inc(record.prompt_tokens)
            self._tokens.labels(record.tenant, "cached").inc(record.cached_tokens)
            self._tokens.labels(record.tenant, "output").inc(record.output_tokens)
