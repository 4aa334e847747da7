"""One service behind a real gRPC server for each test; its model is the module's."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from engine.wire.inference_pb2_grpc import InferenceStub
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.rpc.server import RpcDoor, add_inference, make_server
from router.text.model import ServedModel
from tests.fakes.generator import FakeGenerator
from tests.fakes.text_models import model_of_its_own

MAX_MODEL_LEN, VOCAB_SIZE = 2_000_000, 100_000


@dataclass
class Service:
    """What a test can reach."""

    model: ServedModel
    generator: FakeGenerator
    door: RpcDoor
    address: str
    channel: grpc.aio.Channel
    stub: InferenceStub

    def byte_tokens(self, text: str) -> list[int]:
        """One token a byte."""
        pieces = self.model.tokenizer.pieces.pieces
        return [pieces.index(bytes([byte])) for byte in text.encode()]

    def answers(self, text: str) -> None:
        """Let every call answer `text`, one token a byte, and then end."""
        end = self.model.tokenizer.token_id("<|end|>")
        assert end is not None
        tokens = [*self.byte_tokens(text), end]
        self.generator.script = lambda _: tokens


@asynccontextmanager
async def serve(model: ServedModel, gateway: Gateway | None = None) -> AsyncIterator[Service]:
    """A service; without a gateway everybody may call."""
    generator = FakeGenerator(lambda call: call.tokens[:20])
    config = DoorConfig(max_sequences=8, max_body_bytes=12 << 20)
    server = make_server(config)
    door = add_inference(server, generator, model, config, gateway)
    await door.set_serving(False)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Service(model, generator, door, address, channel, InferenceStub(channel))
    await server.stop(0)


@pytest.fixture(scope="module")
def tiny() -> Iterator[ServedModel]:
    """The model of all services of a module."""
    with model_of_its_own(max_position_embeddings=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE) as model:
        yield model


@pytest.fixture
async def service(tiny: ServedModel) -> AsyncIterator[Service]:
    async with serve(tiny) as running:
        yield running
