"""One service behind a real HTTP server for each test; its model is the module's."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from router.api import GenerateCall, ServiceStatus
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.http.app import create_app
from router.text.model import ServedModel
from tests.fakes.generator import FakeGenerator, FakeStatus
from tests.fakes.http_server import serving
from tests.fakes.text_models import model_of_its_own

MAX_BODY_BYTES = 2 << 20


@dataclass
class Service:
    """What a test can reach."""

    model: ServedModel
    generator: FakeGenerator
    status: FakeStatus
    url: str
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    def answers(self, text: str, *, end: bool = False) -> None:
        """Let every call answer `text`, one token a byte; `end` adds the model's end of sequence."""
        tokens = self.byte_tokens(text)
        if end:
            tokens.append(self.end)
        self.generator.script = lambda _: tokens

    def byte_tokens(self, text: str) -> list[int]:
        """One token a byte."""
        pieces = self.model.tokenizer.pieces.pieces
        return [pieces.index(bytes([byte])) for byte in text.encode()]

    @property
    def end(self) -> int:
        """The model's end of sequence."""
        token = self.model.tokenizer.token_id("<|end|>")
        assert token is not None
        return token


def _echo(call: GenerateCall) -> list[int]:
    return list(call.tokens)


@asynccontextmanager
async def running(model: ServedModel, config: DoorConfig, gateway: Gateway | None = None) -> AsyncIterator[Service]:
    """A service with these limits; without a gateway everybody may call."""
    generator, status = FakeGenerator(_echo), FakeStatus(ServiceStatus(ready=True))
    app = create_app(generator, model, status, config, CollectorRegistry(), gateway)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http:
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Service(model, generator, status, url, http, openai)


@pytest.fixture(scope="module")
def tiny() -> Iterator[ServedModel]:
    """The model of all services of a module."""
    with model_of_its_own() as model:
        yield model


@pytest.fixture
async def service(tiny: ServedModel) -> AsyncIterator[Service]:
    async with running(tiny, DoorConfig(max_body_bytes=MAX_BODY_BYTES, max_sequences=8)) as running_service:
        yield running_service
