"""What a client may say about sampling, checked once for every door."""

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypeAliasType

from engine.core.errors import InvalidRequest
from engine.core.types import Sampling
from engine.models.config import GenerationConfig

_UINT64 = 1 << 64
_TOKEN_ID = re.compile("[0-9]{1,10}")
_Number = TypeVar("_Number", int, float)

Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
StopText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(strict=True, ge=0)]

# Of a million wrong items one is complained of. Types with a name do not inherit the model's strictness.
ONE_COMPLAINT = (FailFast(), Strict())
StopTexts = TypeAliasType("StopTexts", Annotated[list[StopText], *ONE_COMPLAINT, Field(max_length=16)])
StopTokenIds = TypeAliasType("StopTokenIds", Annotated[list[TokenId], *ONE_COMPLAINT, Field(max_length=128)])


def at_most(count: int) -> Callable[[object], object]:
    """A check before a dict's items are looked at: otherwise there is a complaint for each of a million bad ones."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"at most {count} entries")
        return value

    return check


class SamplingFields(BaseModel):
    """Sampling as a client writes it; None is the model's own default, then the neutral value."""

    # Unknown arguments are let in only to be refused in one complaint: "forbid" makes a list of them, however many.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Values of further arguments that ask for nothing, as null always does."""

    max_tokens: int | None = Field(default=None, ge=0)
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(at_most(1024))] | None = None
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: StopTexts | None = None
    stop_token_ids: StopTokenIds | None = None
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
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in self.NEUTRAL.get(name, ()):
                raise InvalidRequest(f"{name[:64]}: this argument is not supported", param=name[:64])
        return self

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens is larger than max_tokens", param="min_tokens")
        return self


def invalid(error: ValidationError) -> InvalidRequest:
    """What pydantic complains of, as Baton's error."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    place = errors[0]["loc"][:1]
    here = [each for each in errors if each["loc"][:1] == place]
    # Several only where each is one alternative of a union; the one that got far enough to be judged is the one meant.
    judged = [each for each in here if each["type"] in ("value_error", "too_long")] or here
    message = " or ".join(dict.fromkeys(map(_reason, judged)))
    if not place:
        return InvalidRequest(message)
    return InvalidRequest(f"{place[0]}: {message}", param=str(place[0]))


def _reason(error: ErrorDetails) -> str:
    match error["type"]:
        case "extra_forbidden":
            return f"{error['loc'][-1]} is not supported" if len(error["loc"]) > 1 else "this argument is not supported"
        case "model_type":
            return "the body must be a JSON object"
        case "json_invalid":
            return f"the body is not valid JSON: {error['msg'].removeprefix('Invalid JSON: ')}"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
    return error["msg"]


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
