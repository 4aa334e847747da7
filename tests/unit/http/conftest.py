"""One service behind a real HTTP server for each test; its model is the module's."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
from tests.fakes.text_models import byte_level_tokenizer, model_of_its_own, tokenizer_config, write_checkpoint

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


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], ServedModel]]:
    """Models by chat template and parser, each made once for all tests of a module."""
    made: dict[tuple[str, str], ServedModel] = {}

    def model_of(template: str, parser: str) -> ServedModel:
        if (template, parser) not in made:
            folder = tmp_path_factory.mktemp("model")
            tokenizer = Tokenizer.from_str(byte_level_tokenizer())
            tokenizer.add_special_tokens(["[TOOL_CALLS]"])
            write_checkpoint(folder, tokenizer, tokenizer_config(chat_template=template), max_position_embeddings=4096)
            made[template, parser] = load_served_model(folder, "tiny", tool_parser=parser)
        return made[template, parser]

    yield model_of
    for model in made.values():
        model.grammars.close()


@pytest.fixture
async def tools(model_of: Callable[[str, str], ServedModel], request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A model that thinks and calls tools; its template and parser may be the test's parameter."""
    model = model_of(*getattr(request, "param", (TEMPLATE, "auto")))
    generator, status = FakeGenerator(lambda call: list(call.tokens)), FakeStatus(ServiceStatus(ready=True))
    app = create_app(generator, model, status, DoorConfig(), CollectorRegistry())
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Service(model, generator, status, url, http, client)
