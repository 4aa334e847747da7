"""Python clients of a running service over gRPC, blocking and asynchronous."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from baton.results import Chunk, Message, Model, Prompt, Result, SamplingOptions, joined
from baton.wire import CHANNEL_OPTIONS, chunk_of, error_of, generate_request, key_metadata, models_of, tokenize_request
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub

DEFAULT_TARGET = "localhost:8001"
DEFAULT_TIMEOUT_S = 600.0
_LOOK_UP_TIMEOUT_S = 30.0


class Client:
    """A blocking client. Safe to share between threads.

    Every method raises BatonError: InvalidRequest, NotFound, Overloaded (with retry_after_s), Unavailable,
    DeadlineExceeded, ...

        with Client("localhost:8001") as client:
            print(client.generate("Once upon a time", max_tokens=32).text)
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, api_key: str = "", credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        """`target`: host:port of the gRPC door. `api_key`: where the service asks for one. `credentials`: for TLS.

        Connects at the first call.
        """
        self._target = target
        self._metadata = key_metadata(api_key)
        self._look_up: dict[str, Any] = {"timeout": _LOOK_UP_TIMEOUT_S, "metadata": self._metadata}
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
        self._stub = InferenceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and every call on it."""
        self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str = "",
        n: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        request_id: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """All n answers to a text, token ids or a conversation, when they are whole."""
        chunks = self.stream(prompt, model=model, n=n, timeout_s=timeout_s, request_id=request_id, **sampling)
        return joined(list(chunks))

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str = "",
        n: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        request_id: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Chunk, None, None]:
        """The answers as they grow. Closing the generator cancels what is left of them."""
        request = generate_request(prompt, sampling, model=model, n=n, request_id=request_id)
        return self._chunks(request, timeout_s)

    def _chunks(self, request: pb.GenerateRequest, timeout_s: float) -> Generator[Chunk, None, None]:
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            for message in call:
                yield chunk_of(message)
        except grpc.RpcError as error:
            raise error_of(error, self._target) from error
        finally:
            call.cancel()

    def tokenize(self, text: str | Sequence[Message], *, model: str = "") -> list[int]:
        """Token ids of a text or a rendered conversation, as generate would see them."""
        try:
            answer = self._stub.Tokenize(
                tokenize_request(text, model), timeout=_LOOK_UP_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_of(error, self._target) from error
        return list(answer.ids)

    def models(self) -> list[Model]:
        """What is served."""
        try:
            return models_of(self._stub.ListModels(pb.ListModelsRequest(), **self._look_up))
        except grpc.RpcError as error:
            raise error_of(error, self._target) from error


class AsyncClient:
    """The same for asyncio. Use it inside one event loop.

    async with AsyncClient() as client:
        async for chunk in client.stream([{"role": "user", "content": "hello"}]):
            print(chunk.text, end="")
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, api_key: str = "", credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        """`target`: host:port of the gRPC door. `api_key`: where the service asks for one. `credentials`: for TLS.

        Connects at the first call.
        """
        self._target = target
        self._metadata = key_metadata(api_key)
        self._look_up: dict[str, Any] = {"timeout": _LOOK_UP_TIMEOUT_S, "metadata": self._metadata}
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
        self._stub = InferenceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and every call on it."""
        await self._channel.close()

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str = "",
        n: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        request_id: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """All n answers to a text, token ids or a conversation, when they are whole."""
        stream = self.stream(prompt, model=model, n=n, timeout_s=timeout_s, request_id=request_id, **sampling)
        async with aclosing(stream) as chunks:
            return joined([chunk async for chunk in chunks])

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str = "",
        n: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        request_id: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """The answers as they grow. Closing the generator cancels what is left of them."""
        request = generate_request(prompt, sampling, model=model, n=n, request_id=request_id)
        return self._chunks(request, timeout_s)

    async def _chunks(self, request: pb.GenerateRequest, timeout_s: float) -> AsyncGenerator[Chunk, None]:
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            async for message in call:
                yield chunk_of(message)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._target) from error
        finally:
            call.cancel()

    async def tokenize(self, text: str | Sequence[Message], *, model: str = "") -> list[int]:
        """Token ids of a text or a rendered conversation, as generate would see them."""
        try:
            answer = await self._stub.Tokenize(
                tokenize_request(text, model), timeout=_LOOK_UP_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._target) from error
        return list(answer.ids)

    async def models(self) -> list[Model]:
        """What is served."""
        try:
            return models_of(await self._stub.ListModels(pb.ListModelsRequest(), **self._look_up))
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._target) from error
