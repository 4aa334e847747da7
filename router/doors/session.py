"""One client request as the sequences that it asks for, and their answers merged into one stream."""

import asyncio
import re
import secrets
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from engine.core.errors import Cancelled, DeadlineExceeded, InvalidRequest, Unavailable
from engine.core.types import FinishReason, Grammar
from router.api import Delta, GenerateCall, Generator, Timing
from router.doors.config import DoorConfig
from router.doors.prompts import answer_room
from router.doors.sampling import SamplingFields, check_token_ids, choice_seed, to_sampling
from router.text.model import ServedModel
from router.text.output import TextDelta, TextStream, TokenText

_FIT_FOR_LOGS = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


def fit_for_logs(request_id: str) -> bool:
    """Whether a client's own id may stand in a log line as it is."""
    return _FIT_FOR_LOGS.fullmatch(request_id) is not None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a door has understood of one client request."""

    request_id: str
    prompts: Sequence["array[int]"]
    fields: SamplingFields
    default_max_tokens: int | None
    """For a request that names none; None is the rest of the context."""
    starts_text: bool
    """The answer begins a text of its own (chat) instead of going on with the prompt's."""
    timeout_s: float | None = None
    priority: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    """Of each answer; it was checked."""
    marks: Sequence[str] = ()
    """Special tokens that are part of the answer's text."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence to generate: what the router is called with, and how its text is made."""

    index: int
    call: GenerateCall
    stream: TextStream
    score_only: bool
    """max_tokens was 0: the prompt's log probabilities are wanted and the one drawn token is thrown away."""

    def show(self, delta: Delta) -> TextDelta:
        """What the client sees of the call's next delta. After a result with `finish`, the call is to be closed."""
        return self.stream.prompt_only(delta) if self.score_only else self.stream.push(delta)


def choices_of(ask: Ask, model: ServedModel, config: DoorConfig) -> list[Choice]:
    """The sequences of one request, prompt by prompt, n of each. Raises InvalidRequest before anything runs."""
    fields = ask.fields
    copies = fields.n or 1
    check_count(len(ask.prompts), copies, config)
    check_token_ids(fields, model.vocab_size)
    if ask.grammar is not None and fields.ignore_eos:
        raise InvalidRequest("ignore_eos: an answer that follows a grammar ends with it", param="ignore_eos")
    seed = secrets.randbits(64) if fields.seed is None else fields.seed
    timeout_s = min(ask.timeout_s or config.default_timeout_s, config.max_timeout_s)
    pieces = model.tokenizer.pieces.showing(ask.marks)
    choices: list[Choice] = []
    for prompt in ask.prompts:
        room = answer_room(model, len(prompt), fields.max_tokens, ask.default_max_tokens)
        if fields.min_tokens is not None and fields.min_tokens > room:
            raise InvalidRequest(f"min_tokens: the answer has at most {room} tokens", param="min_tokens")
        for copy in range(copies):
            sampling = replace(
                to_sampling(fields, model.generation, max_tokens=max(room, 1), seed=choice_seed(seed, copy)),
                num_logprobs=ask.num_logprobs,
                num_prompt_logprobs=ask.num_prompt_logprobs,
                grammar=ask.grammar,
            )
            index = len(choices)
            call = GenerateCall(f"{ask.request_id}-{index}", prompt, sampling, timeout_s, priority=ask.priority)
            stream = TextStream(
                pieces,
                tuple(fields.stop or ()),
                min_tokens=sampling.min_tokens,
                starts_text=ask.starts_text,
            )
            choices.append(Choice(index, call, stream, score_only=room == 0))
    return choices


def check_count(num_prompts: int, copies: int, config: DoorConfig) -> None:
    """Raises InvalidRequest for more sequences than one request may ask for."""
    if num_prompts * copies > config.max_sequences:
        raise InvalidRequest(f"more than {config.max_sequences} sequences in one request", param="n")


async def run(generator: Generator, choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """All answers of one request as (index, delta), in order within each index.

    The first failure ends all of them and is raised. Closing the generator cancels what still runs.
    """
    if len(choices) == 1:
        async with aclosing(_run_one(generator, choices[0])) as deltas:
            async for delta in deltas:
                yield choices[0].index, delta
        return
    queue: asyncio.Queue[tuple[int, TextDelta | None]] = asyncio.Queue()  # never longer than the answers themselves
    tasks = [asyncio.create_task(_pump(generator, choice, place, queue)) for place, choice in enumerate(choices)]
    try:
        running = len(tasks)
        while running:
            place, item = await queue.get()
            if item is None:
                await tasks[place]  # raises what ended it
                running -= 1
            else:
                yield choices[place].index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    generator: Generator, choice: Choice, place: int, queue: "asyncio.Queue[tuple[int, TextDelta | None]]"
) -> None:
    try:
        async with aclosing(_run_one(generator, choice)) as deltas:
            async for delta in deltas:
                queue.put_nowait((place, delta))
    finally:
        queue.put_nowait((place, None))


async def _run_one(generator: Generator, choice: Choice) -> AsyncGenerator[TextDelta, None]:
    async with aclosing(generator.generate(choice.call)) as deltas:
        async for delta in deltas:
            _raise_failure(delta)
            out = choice.show(delta)
            yield out
            if out.finish is not None:
                return
    raise Unavailable("the answer broke off without an end")


def _raise_failure(delta: Delta) -> None:
    match delta.finish_reason:
        case FinishReason.DEADLINE:
            raise DeadlineExceeded("the request's deadline passed")
        case FinishReason.CANCELLED:
            raise Cancelled("the request was cancelled")
        case FinishReason.REFUSED:
            raise InvalidRequest("the grammar cannot be followed within the limits")
        case FinishReason.ERROR:
            raise Unavailable("the request failed on its worker")


@dataclass(slots=True)
class Answer:
    """One whole answer. Mutable while it is collected."""

    texts: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Tokens that came with each of them."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenText] = field(default_factory=list)
    prompt_logprobs: list[TokenText] = field(default_factory=list)
    cached_tokens: int = 0
    finish: FinishReason = FinishReason.LENGTH
    stopped_by: str | int | None = None
    timing: Timing | None = None

    def add(self, delta: TextDelta) -> None:
        """Take in the next delta of this answer."""
        self.texts.append(delta.text)
        self.counts.append(len(delta.tokens))
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.cached_tokens = self.cached_tokens if delta.cached_tokens is None else delta.cached_tokens
        self.stopped_by = delta.stopped_by
        self.finish = delta.finish or self.finish
        self.timing = delta.timing or self.timing

    def as_delta(self) -> TextDelta:
        """The whole answer as if it had come at once."""
        return TextDelta(
            text="".join(self.texts),
            tokens=tuple(self.tokens),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            cached_tokens=self.cached_tokens,
            finish=self.finish,
            stopped_by=self.stopped_by,
            timing=self.timing,
        )


async def collect(events: AsyncGenerator[tuple[int, TextDelta], None], choices: Sequence[Choice]) -> list[Answer]:
    """All answers to their end, from what `run` gives, which is closed; in the order of `choices`."""
    answers = {choice.index: Answer() for choice in choices}
    async with aclosing(events):
        async for index, delta in events:
            answers[index].add(delta)
    return list(answers.values())
