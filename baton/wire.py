"""The client's values as protobuf messages and back, and gRPC failures as Baton's errors. No I/O."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from typing_extensions import TypeIs

from baton.results import Chunk, Logprob, Message, Model, Prompt, RequestTiming, SamplingOptions, Usage
from engine.core.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from engine.wire import inference_pb2 as pb

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)

_ERRORS: dict[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
_FINISH = {pb.GenerateResponse.FINISH_STOP: "stop", pb.GenerateResponse.FINISH_LENGTH: "length"}


def key_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """What goes with every call of a client that has a key. Raises InvalidRequest for what can be none."""
    if not api_key:
        return ()
    if not (api_key.isascii() and api_key.isprintable()):
        raise InvalidRequest("a key has printable ASCII characters only", param="api_key")
    return (("authorization", f"Bearer {api_key}"),)


def generate_request(
    prompt: Prompt, sampling: SamplingOptions, *, model: str, n: int, request_id: str
) -> pb.GenerateRequest:
    """Raises InvalidRequest for options that are unknown or of the wrong type."""
    options = sampling.copy()
    if isinstance(stop := options.get("stop"), str):
        options["stop"] = [stop]
    request = pb.GenerateRequest()
    fields: dict[str, Any] = {"model": model, "n": n, "request_id": request_id}
    for name, value in fields.items():
        with _blaming(name):  # protobuf does not say which value it cannot take, so each is set alone
            request.MergeFrom(pb.GenerateRequest(**{name: value}))
    wanted: dict[str, Any] = {**options}
    for name, value in wanted.items():
        with _blaming(name):
            field: dict[str, Any] = {name: pb.Choice(texts=value) if name == "choice" else value}
            request.sampling.MergeFrom(pb.SamplingParams(**field))
    with _blaming("prompt"):
        if isinstance(prompt, str):
            request.text = prompt
        elif is_chat(prompt):
            request.chat.CopyFrom(chat_of(prompt))
        else:
            request.tokens.CopyFrom(pb.TokenIds(ids=prompt))
    return request


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from error


def tokenize_request(text: str | Sequence[Message], model: str) -> pb.TokenizeRequest:
    """Of a text or a conversation."""
    if isinstance(text, str):
        return pb.TokenizeRequest(text=text, model=model)
    return pb.TokenizeRequest(chat=chat_of(text), model=model)


def is_chat(prompt: Sequence[int] | Sequence[Message]) -> TypeIs[Sequence[Message]]:
    """Whether a prompt that is no text is a conversation."""
    return bool(prompt) and not isinstance(prompt[0], int)


def chat_of(messages: Iterable[Message]) -> pb.Chat:
    """Raises ValueError for a message with other keys than role, content and name."""
    return pb.Chat(messages=[pb.ChatMessage(**message) for message in messages])


def chunk_of(message: pb.GenerateResponse) -> Chunk:
    """One message of an answer."""
    last = message.finish != pb.GenerateResponse.FINISH_UNSPECIFIED
    stopped_by = message.WhichOneof("stopped_by")
    return Chunk(
        index=message.index,
        text=message.text,
        tokens=tuple(message.tokens),
        logprobs=tuple(map(_logprob, message.logprobs)),
        prompt_logprobs=tuple(map(_logprob, message.prompt_logprobs)),
        finish=_FINISH[message.finish] if last else None,
        stopped_by=getattr(message, stopped_by) if stopped_by else None,
        usage=_usage(message.usage) if last else None,
        timing=_timing(message.timing) if message.HasField("timing") else None,
    )


def models_of(message: pb.ListModelsResponse) -> list[Model]:
    """The served models."""
    return [Model(card.name, card.max_model_len, card.vocab_size) for card in message.models]


def error_of(error: grpc.RpcError | grpc.aio.AioRpcError, target: str) -> BatonError:
    """Baton's own error for a failed call, with what the server said about the field and about coming back."""
    code, message = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.UNAVAILABLE and not _details(error):  # no server said this
        message = f"cannot reach {target}: {message}"
    made = _ERRORS.get(code, BatonError)(message)
    for detail in _details(error):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            made.param = bad.field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            made.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return made


def _details(error: grpc.RpcError) -> list[any_pb2.Any]:
    status = rpc_status.from_call(error)
    return [] if status is None else list(status.details)


def _logprob(row: pb.TextLogprob) -> Logprob:
    top = tuple(Logprob(each.token, each.logprob, each.bytes) for each in row.top)
    return Logprob(row.token, row.logprob, row.bytes, top)


def _usage(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _timing(timing: pb.RequestTiming) -> RequestTiming:
    return RequestTiming(
        timing.queue_s,
        timing.admit_s,
        timing.prefill_s,
        timing.deliver_s,
        timing.ttft_s,
        timing.transfer_s,
        timing.first_step_s,
        timing.prefill_worker,
        timing.decode_worker,
    )
