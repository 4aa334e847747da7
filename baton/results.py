"""What the client library and `baton.LLM` give back. Plain frozen values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

Message = Mapping[str, str]
"""One chat message: role, content and, for templates that know it, name."""

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation."""


class EndOptions(TypedDict, total=False):
    """When an answer ends."""

    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


class FormOptions(TypedDict, total=False):
    """What an answer must look like; one of these at most."""

    json_schema: str
    """A JSON Schema, as JSON."""
    json_object: bool
    regex: str
    choice: Sequence[str]
    grammar: str
    """In llguidance's dialect of Lark."""


class SamplingOptions(EndOptions, FormOptions, total=False):
    """How tokens are drawn, as inference.proto explains. What is left out takes the model's own default."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    logprobs: int
    prompt_logprobs: int


def sampling_options(**given: Any) -> SamplingOptions:
    """The options that are not None."""
    return cast(SamplingOptions, {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token and its log probability."""

    token: int
    logprob: float
    piece: bytes
    """The token's own bytes; they need not be whole characters."""
    top: tuple["Logprob", ...] = ()
    """The likeliest, descending, when asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer and its prompt."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV was found in a cache."""


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Where the time to the first token went, and who did the work: the four parts of ttft_s come before it.

    `transfer_s` and `first_step_s` are what the second token waited for, 0 when the pages did not move.
    """

    queue_s: float
    admit_s: float
    prefill_s: float
    deliver_s: float
    ttft_s: float
    transfer_s: float
    first_step_s: float
    prefill_worker: str
    decode_worker: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one answer. The last one of each answer, and only it, has `finish`, `usage` and `timing`."""

    index: int
    """Which of n answers."""
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    finish: str | None = None
    """stop or length."""
    stopped_by: str | int | None = None
    """The stop string or stop token that ended it."""
    usage: Usage | None = None
    timing: RequestTiming | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    text: str
    tokens: tuple[int, ...]
    finish: str
    usage: Usage
    stopped_by: str | int | None = None
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    timing: RequestTiming | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """All n answers to one prompt."""

    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self.answers[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the first answer."""
        return self.answers[0].tokens


@dataclass(frozen=True, slots=True)
class Model:
    """A served model."""

    name: str
    max_model_len: int
    """Tokens of prompt and answer together."""
    vocab_size: int


def joined(chunks: Sequence[Chunk]) -> Result:
    """Whole answers of the chunks of one request, in any interleaving. Every answer must have its last chunk."""
    answers = []
    for index in sorted({chunk.index for chunk in chunks}):
        parts = [chunk for chunk in chunks if chunk.index == index]
        last = parts[-1]
        assert last.finish is not None and last.usage is not None
        answers.append(
            Answer(
                text="".join(part.text for part in parts),
                tokens=tuple(token for part in parts for token in part.tokens),
                finish=last.finish,
                usage=last.usage,
                stopped_by=last.stopped_by,
                logprobs=tuple(row for part in parts for row in part.logprobs),
                prompt_logprobs=parts[0].prompt_logprobs,
                timing=last.timing,
            )
        )
    return Result(tuple(answers))
