"""One service with both doors in another thread, shared by a module's tests; each test sets its own answer."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from router.api import ServiceStatus
from router.text.model import ServedModel
from tests.fakes.generator import FakeGenerator, FakeStatus
from tests.fakes.service_thread import doors_in_thread
from tests.fakes.text_models import model_of_its_own


@dataclass
class Service:
    """What a test can reach."""

    model: ServedModel
    generator: FakeGenerator
    status: FakeStatus
    target: str
    url: str

    def answers(self, text: str) -> None:
        """Let every call answer `text`, one token a byte, and then end."""
        pieces = self.model.tokenizer.pieces.pieces
        end = self.model.tokenizer.token_id("<|end|>")
        assert end is not None
        tokens = [*(pieces.index(bytes([byte])) for byte in text.encode()), end]
        self.generator.script = lambda _: tokens


@pytest.fixture(scope="module")
def tiny() -> Iterator[ServedModel]:
    """The model of all services of a module."""
    with model_of_its_own() as model:
        yield model


@pytest.fixture
def service(tiny: ServedModel) -> Iterator[Service]:
    generator, status = FakeGenerator(lambda call: call.tokens), FakeStatus(ServiceStatus(ready=True))
    with doors_in_thread(generator, tiny, status) as addresses:
        yield Service(tiny, generator, status, addresses.target, addresses.url)
