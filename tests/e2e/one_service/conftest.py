"""One service for all tests here: each leaves it whole and idle."""

from collections.abc import Iterator

import pytest

from deploy.spawned import Service, serve
from tests.fakes.checkpoints import tiny_checkpoint


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    """One prefill and one decode worker with a tiny Llama behind two routers; the context is 512 tokens."""
    flags = ("--max-model-len", "512", "--kv-memory", "8MiB", "--routers", "2")
    with serve("--model", str(tiny_checkpoint("llama")), *flags) as running:
        yield running


@pytest.fixture
def quiet_service(service: Service) -> Iterator[Service]:
    """The same; the test fails if it leaves a page that is neither free nor cached, or a request."""
    yield service
    service.wait_idle()
