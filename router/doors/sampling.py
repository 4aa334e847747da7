"""What a client may say about sampling, checked once for every door."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from engine.core.errors import InvalidRequest
from engine.core.types import Sampling
from engine.models.config import GenerationConfig

_UINT64 = 1 << 64
_TOKEN_ID = re.compile("[0-9]{1,10}")
_Number = TypeVar("_Number", int, float)

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0)]


class SamplingFields(BaseModel):
    """Sampling as a client writes it; None is the model's own default, then the neutral value."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    max_tokens: int | None = Field(default=None, ge=0)
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: list[StopText] | None = Field(default=None, max_length=16)
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=128)
    ignore_eos: bool | None = None
    n: int | None = Field(default=None, ge=1)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias")
    @classmethod
    def _bias_keys_are_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not _TOKEN_ID.fullmatch(key):
                raise ValueError(f"{key[:20]!r} is not a token id")
        return value

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is larger than max_tokens")
        return self


def invalid(error: ValidationError) -> InvalidRequest:
    """What pydantic complains of, as Baton's error."""
    return complaint(error.errors(include_url=False, include_context=False, include_input=False))


def complaint(errors: Sequence[Mapping[str, Any]], skip: int = 0) -> InvalidRequest:
    """The first field at fault and everything that is wrong with it; `skip` leading parts of a place are no field."""
    place = errors[0]["loc"][skip : skip + 1]
    reasons = dict.fromkeys(_reason(error) for error in errors if error["loc"][skip : skip + 1] == place)
    message = " or ".join(reasons)  # several only where each is one alternative of a union
    if not place or not isinstance(place[0], str):
        return InvalidRequest(message)
    return InvalidRequest(f"{place[0]}: {message}", param=place[0])


def _reason(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "this argument is not supported"
        case "model_attributes_type":
            return "the body must be a JSON object, sent with content-type application/json"
        case "json_invalid":
            return f"the body is not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
    return str(error["msg"])


def choice_seed(seed: int, index: int) -> int:
    """The seed of answer `index` of one prompt: the request's own for the first, a hash of (seed, index) after it."""
    seed %= _UINT64
    if index == 0:
        return seed
    digest = blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def check_token_ids(fields: SamplingFields, vocab_size: int) -> None:
    """Raises InvalidRequest for an id in `fields` that the model does not have."""
    biased = [int(token) for token in fields.logit_bias or ()]
    for name, ids in (("logit_bias", biased), ("stop_token_ids", fields.stop_token_ids or ())):
        if ids and max(ids) >= vocab_size:
            raise InvalidRequest(f"{name}: token ids must lie in [0, {vocab_size})", param=name)


def to_sampling(fields: SamplingFields, generation: GenerationConfig, *, max_tokens: int, seed: int) -> Sampling:
    """What the engine is told; log probabilities are asked for elsewhere, since each door spells them its own way."""
    eos = () if fields.ignore_eos else generation.eos_token_ids
    stop_ids = dict.fromkeys((*eos, *(fields.stop_token_ids or ())))
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens or 0,
        temperature=_first(fields.temperature, generation.temperature),
        top_p=_first(fields.top_p, generation.top_p),
        top_k=max(_first(fields.top_k, generation.top_k), 0),
        min_p=_first(fields.min_p, generation.min_p),
        repetition_penalty=_first(fields.repetition_penalty, generation.repetition_penalty),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=tuple((int(token), bias) for token, bias in (fields.logit_bias or {}).items()),
        seed=seed,
        stop_token_ids=tuple(stop_ids),
    )


def _first(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value
