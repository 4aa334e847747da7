"""Requests of the inference protocol as the doors' own values, and answers as its messages."""

from array import array

import numpy as np
from pydantic import ValidationError

from engine.core.errors import InvalidRequest
from engine.core.types import FinishReason, token_buffer
from engine.wire import inference_pb2 as pb
from router.api import Timing
from router.doors.prompts import MAX_MESSAGES
from router.doors.sampling import invalid
from router.doors.structured import StructuredFields
from router.text.output import TextDelta, TokenText

MAX_LOGPROBS = 20

_SCALARS = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_FINISH = {
    FinishReason.STOP: pb.GenerateResponse.FINISH_STOP,
    FinishReason.LENGTH: pb.GenerateResponse.FINISH_LENGTH,
}


def sampling_fields(params: pb.SamplingParams, copies: int) -> StructuredFields:
    """The same checks as for every other door. Raises InvalidRequest."""
    values: dict[str, object] = {name: getattr(params, name) for name in _SCALARS if params.HasField(name)}
    values |= {"logit_bias": {str(token): bias for token, bias in params.logit_bias.items()}}
    values |= {"stop": list(params.stop), "stop_token_ids": list(params.stop_token_ids)}
    values |= _structured(params)
    values |= {"ignore_eos": params.ignore_eos, "n": copies or 1}
    if params.HasField("max_tokens") and params.max_tokens == 0:
        raise InvalidRequest("max_tokens: 0 asks for nothing", param="max_tokens")
    try:
        return StructuredFields.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error


def _structured(params: pb.SamplingParams) -> dict[str, object]:
    match params.WhichOneof("structured"):
        case None:
            return {}
        case "json_schema":
            return {"structured_outputs": {"json": params.json_schema}}
        case "choice":
            return {"structured_outputs": {"choice": list(params.choice.texts)}}
        case name:
            return {"structured_outputs": {name: getattr(params, name)}}


def num_logprobs(params: pb.SamplingParams, name: str) -> int | None:
    """`logprobs` or `prompt_logprobs`, None when not asked for. Raises InvalidRequest."""
    if not params.HasField(name):
        return None
    count: int = getattr(params, name)
    if count > MAX_LOGPROBS:
        raise InvalidRequest(f"{name}: at most {MAX_LOGPROBS}", param=name)
    return count


def buffer_of(ids: pb.TokenIds) -> "array[int]":
    """A prompt's token ids, copied as a whole: numpy reads the field without making an object of each id."""
    tokens = token_buffer()
    tokens.frombytes(np.array(ids.ids, dtype=np.int32).tobytes())
    return tokens


def messages_of(chat: pb.Chat) -> list[dict[str, str]]:
    """Messages as chat templates want them. Raises InvalidRequest."""
    if len(chat.messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages: at most {MAX_MESSAGES}", param="messages")
    return [
        {"role": message.role, "content": message.content}
        | ({"name": message.name} if message.HasField("name") else {})
        for message in chat.messages
    ]


def response(index: int, delta: TextDelta) -> pb.GenerateResponse:
    """One delta of sequence `index`; usage and timing are added to the last one."""
    message = pb.GenerateResponse(index=index, text=delta.text, tokens=delta.tokens)
    if delta.logprobs:
        message.logprobs.extend(map(_logprob, delta.logprobs))
    if delta.prompt_logprobs:
        message.prompt_logprobs.extend(map(_logprob, delta.prompt_logprobs))
    if delta.finish is not None:
        message.finish = _FINISH[delta.finish]
        if isinstance(delta.stopped_by, str):
            message.stop_text = delta.stopped_by
        elif delta.stopped_by is not None:
            message.stop_token = delta.stopped_by
        if delta.timing is not None:
            message.timing.CopyFrom(timing_message(delta.timing))
    return message


def timing_message(timing: Timing) -> pb.RequestTiming:
    """Field by field."""
    return pb.RequestTiming(
        queue_s=timing.queue_s,
        admit_s=timing.admit_s,
        deliver_s=timing.deliver_s,
        first_step_s=timing.first_step_s,
        prefill_s=timing.prefill_s,
        transfer_s=timing.transfer_s,
        ttft_s=timing.ttft_s,
        prefill_worker=timing.prefill_worker,
        decode_worker=timing.decode_worker,
    )


def _logprob(row: TokenText) -> pb.TextLogprob:
    top = [pb.TopLogprob(token=token, logprob=logprob, bytes=piece) for token, logprob, piece in row.top]
    return pb.TextLogprob(token=row.token, logprob=row.logprob, bytes=row.piece, top=top)
