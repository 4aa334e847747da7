"""One client request becomes sequences; their answers come merged, and nothing outlives its reader."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from engine.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from engine.core.types import FinishReason
from router.api import Delta, GenerateCall
from router.doors.config import DoorConfig
from router.doors.prompts import (
    INLINE_CHARS,
    ContextLengthExceeded,
    chat_tokens,
    tokens_of_chat,
    tokens_of_ids,
    tokens_of_text,
)
from router.doors.sampling import SamplingFields, choice_seed
from router.doors.session import Answer, Ask, Choice, choices_of, collect, run
from router.text.model import ServedModel
from tests.fakes.generator import FakeGenerator
from tests.fakes.text_models import CORPUS, served_model


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return served_model(tmp_path)


def echo(call: GenerateCall) -> list[int]:
    return list(call.tokens)


def ask(model: ServedModel, *texts: str, timeout_s: float | None = None, **fields: object) -> list[Choice]:
    prompts = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    given = Ask("r", prompts, SamplingFields.model_validate(fields), 16, starts_text=True, timeout_s=timeout_s)
    return choices_of(given, model, DoorConfig(max_sequences=6, default_timeout_s=5.0, max_timeout_s=9.0))


async def gather(generator: FakeGenerator, choices: list[Choice]) -> list[Answer]:
    return await collect(run(generator, choices), choices)


async def test_prompts_times_n_in_order(model: ServedModel) -> None:
    choices = ask(model, "one", "two", n=2)
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert [choice.call.request_id for choice in choices] == ["r-0", "r-1", "r-2", "r-3"]
    answers = await gather(FakeGenerator(echo), choices)
    assert ["".join(answer.texts) for answer in answers] == ["one", "one", "two", "two"]
    assert {answer.finish for answer in answers} == {FinishReason.LENGTH}
    assert {answer.cached_tokens for answer in answers} == {3}


def test_copies_draw_from_derived_seeds_and_prompts_of_a_batch_do_not(model: ServedModel) -> None:
    seeds = [choice.call.sampling.seed for choice in ask(model, "a", "b", n=2, seed=-5)]
    assert seeds == [choice_seed(-5, 0), choice_seed(-5, 1)] * 2
    assert seeds[0] == 2**64 - 5 and seeds[1] != seeds[0]


def test_without_a_seed_each_request_has_its_own(model: ServedModel) -> None:
    assert ask(model, "a")[0].call.sampling.seed != ask(model, "a")[0].call.sampling.seed


def test_too_many_sequences(model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="more than 6 sequences"):
        ask(model, "a", n=7)


@pytest.mark.parametrize(("asked", "given"), [(None, 5.0), (2.0, 2.0), (60.0, 9.0)])
def test_deadline(model: ServedModel, asked: float | None, given: float) -> None:
    assert ask(model, "a", timeout_s=asked)[0].call.timeout_s == given


async def test_the_first_failure_ends_all_and_is_raised(model: ServedModel) -> None:
    generator = FakeGenerator(echo)
    generator.pause_after, generator.error = 1, Overloaded("full", retry_after_s=2.0)
    with pytest.raises(Overloaded):
        await gather(generator, ask(model, "aa bb", "cc dd"))
    assert generator.running == 0


@pytest.mark.parametrize("texts", [["one two"], ["one two", "three four", "five six"]])
async def test_closing_early_closes_every_call(model: ServedModel, texts: list[str]) -> None:
    generator = FakeGenerator(echo)
    generator.pause_after = 1
    async with aclosing(run(generator, ask(model, *texts))) as events:
        await anext(events)
        assert generator.running >= 1
    assert generator.running == 0


async def test_one_that_waits_does_not_hold_up_the_others(model: ServedModel) -> None:
    slow = asyncio.Event()

    class OneSlow(FakeGenerator):
        async def _hold(self) -> None:
            if self.calls[0].tokens is not None and len(self.calls) == 2:
                await slow.wait()

    generator = OneSlow(echo)
    finished = set()
    choices = ask(model, "a b c d e f", "x")
    generator.pause_after = 3  # only the longer answer gets there
    async with aclosing(run(generator, choices)) as events:
        async for index, delta in events:
            if delta.finish is not None:
                finished.add(index)
                slow.set()
    assert finished == {0, 1}


async def test_a_stop_string_cancels_the_call(model: ServedModel) -> None:
    generator = FakeGenerator(echo)
    generator.pause_after = 4
    text = "a!bcdefgh"
    (answer,) = await gather(generator, ask(model, text, stop="!"))
    assert ("".join(answer.texts), answer.finish, answer.stopped_by) == ("a", FinishReason.STOP, "!")
    assert generator.running == 0


@pytest.mark.parametrize(
    ("reason", "error"), [(FinishReason.DEADLINE, DeadlineExceeded), (FinishReason.ERROR, Unavailable)]
)
async def test_a_failed_end_is_raised(model: ServedModel, reason: FinishReason, error: type[Exception]) -> None:
    class Failing(FakeGenerator):
        async def generate(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
            yield Delta((1,))
            yield Delta((), finish_reason=reason)

    with pytest.raises(error):
        await gather(Failing(echo), ask(model, "a"))


async def test_an_answer_without_an_end_is_an_error(model: ServedModel) -> None:
    class Broken(FakeGenerator):
        async def generate(self, call: GenerateCall) -> AsyncGenerator[Delta, None]:
            yield Delta((1,))

    with pytest.raises(Unavailable, match="broke off"):
        await gather(Broken(echo), ask(model, "a"))


def test_the_model_s_own_defaults_and_stop_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "top_p": 0.9}'
    )
    model = served_model(folder)
    sampling = ask(model, "a")[0].call.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.9)
    assert sampling.stop_token_ids == (5, 6)
    own = ask(model, "a", temperature=0.0, top_k=-1, top_p=1.0, ignore_eos=True, stop_token_ids=[7])[0].call.sampling
    assert (own.temperature, own.top_k, own.top_p, own.stop_token_ids) == (0.0, 0, 1.0, (7,))
    assert ask(model, "a", stop_token_ids=[6, 7])[0].call.sampling.stop_token_ids == (5, 6, 7)


def test_token_ids_in_parameters_must_exist(model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="stop_token_ids"):
        ask(model, "a", stop_token_ids=[model.vocab_size])
    with pytest.raises(InvalidRequest, match="logit_bias"):
        ask(model, "a", logit_bias={str(model.vocab_size): 1.0})
    assert ask(model, "a", logit_bias={"3": 1.5})[0].call.sampling.logit_bias == ((3, 1.5),)


@pytest.mark.parametrize(("asked", "given"), [(None, 16), (5, 5), (500, 500)])
def test_room_for_the_answer(model: ServedModel, asked: int | None, given: int) -> None:
    assert model.max_model_len == 512
    fields = {} if asked is None else {"max_tokens": asked}
    assert ask(model, "a", **fields)[0].call.sampling.max_tokens == given
    with pytest.raises(ContextLengthExceeded, match="more than the model's context of 512"):
        ask(model, "a", max_tokens=512)


async def test_a_long_prompt_gives_the_same_tokens_in_a_thread(tmp_path: Path) -> None:
    model = served_model(tmp_path, max_position_embeddings=100_000)
    text = CORPUS * (INLINE_CHARS // len(CORPUS) + 2)
    assert await tokens_of_text(model, text) == model.tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    assert await tokens_of_chat(model, messages) == chat_tokens(model, messages)


async def test_prompts_that_cannot_be_served(model: ServedModel) -> None:
    for ids in ([], [-1], [model.vocab_size], [1 << 40]):
        with pytest.raises(InvalidRequest):
            tokens_of_ids(model, ids)
    assert list(tokens_of_ids(model, [model.vocab_size - 1])) == [model.vocab_size - 1]
    with pytest.raises(ContextLengthExceeded, match="no room for an answer"):
        tokens_of_ids(model, [1] * 512)
    with pytest.raises(ContextLengthExceeded, match="cannot fit"):
        await tokens_of_text(model, "x" * 1_000_000)
    with pytest.raises(ContextLengthExceeded, match="cannot fit"):
        await tokens_of_chat(model, [{"role": "user", "content": "x" * 1_000_000}])
    with pytest.raises(InvalidRequest, match="at least one"):
        await tokens_of_chat(model, [])
