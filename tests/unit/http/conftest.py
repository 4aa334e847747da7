"""One service behind a real HTTP server for each test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer

from router.api import GenerateCall, ServiceStatus
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.http.app import create_app
from router.text.model import ServedModel, load_served_model
from tests.fakes.generator import FakeGenerator, FakeStatus
from tests.fakes.http_server import serving
from tests.fakes.text_models import byte_level_tokenizer, served_model, tokenizer_config, write_checkpoint

MAX_BODY_BYTES = 2 << 20
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% if message['tool_call_id'] %}({{ message['tool_call_id'] }}){% endif %}<|end|>{% endfor %}"
    "[assistant]{% if think %}<think>\n{% endif %}{# </think> #}"
)


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
async def running(tmp_path: Path, config: DoorConfig, gateway: Gateway | None = None) -> AsyncIterator[Service]:
    """A service with these limits; without a gateway everybody may call."""
    model = served_model(tmp_path)
    generator, status = FakeGenerator(_echo), FakeStatus(ServiceStatus(ready=True))
    app = create_app(generator, model, status, config, CollectorRegistry(), gateway)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http:
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Service(model, generator, status, url, http, openai)
    model.grammars.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(tmp_path, DoorConfig(max_body_bytes=MAX_BODY_BYTES, max_sequences=8)) as running_service:
        yield running_service


@pytest.fixture
async def tools(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A model that thinks and calls tools; its template and parser may be the test's parameter."""
    template, parser = getattr(request, "param", (TEMPLATE, "auto"))
    tokenizer = Tokenizer.from_str(byte_level_tokenizer())
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    write_checkpoint(tmp_path, tokenizer, tokenizer_config(chat_template=template), max_position_embeddings=4096)
    model = load_served_model(tmp_path, "tiny", tool_parser=parser)
    generator, status = FakeGenerator(lambda call: list(call.tokens)), FakeStatus(ServiceStatus(ready=True))
    app = create_app(generator, model, status, DoorConfig(), CollectorRegistry())
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Service(model, generator, status, url, http, client)
    model.grammars.close()
