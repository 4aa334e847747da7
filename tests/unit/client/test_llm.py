"""An engine inside the process: transformers' tokens, shared prefixes, stop strings, nothing left behind."""

from collections.abc import Iterator

import pytest
import torch

from baton import LLM
from engine.core.errors import CheckpointError, InvalidRequest
from tests.fakes.checkpoints import reference_model, tiny_checkpoint

PROMPTS = ["the quick brown fox", "a", "naïve café 🙂 " * 5]
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(tiny_checkpoint("llama")), device="cpu", kv_memory=1 << 22, page_size=8, max_queued=2) as llm:
        yield llm


def reference(llm: LLM, prompt: str) -> list[int]:
    model = reference_model(tiny_checkpoint("llama"))
    ids = torch.tensor([llm.tokenize(prompt)])
    with torch.inference_mode():
        out = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
    return out[0, ids.shape[1] :].tolist()


def test_greedy_tokens_are_those_of_transformers_though_the_queue_is_short(llm: LLM) -> None:
    results = llm.generate_batch(PROMPTS, **GREEDY)
    assert [list(result.tokens) for result in results] == [reference(llm, prompt) for prompt in PROMPTS]
    assert [result.answers[0].usage.prompt_tokens for result in results] == [len(llm.tokenize(p)) for p in PROMPTS]


def test_a_second_call_finds_the_first_one_s_prefix(llm: LLM) -> None:
    prompt = "some long enough document to fill pages; question"
    first, second = llm.generate(prompt, **GREEDY), llm.generate(prompt, **GREEDY)
    assert first.tokens == second.tokens
    assert second.answers[0].usage.cached_tokens == (len(llm.tokenize(prompt)) - 1) // 8 * 8


def test_n_answers_with_a_seed_repeat_and_differ(llm: LLM) -> None:
    first = llm.generate("the", n=3, seed=5, temperature=1.5, max_tokens=12)
    assert len({answer.tokens for answer in first.answers}) == 3
    assert llm.generate("the", n=3, seed=5, temperature=1.5, max_tokens=12).answers[2].tokens == first.answers[2].tokens


def test_a_stop_string_ends_the_sequence_in_the_engine_too(llm: LLM) -> None:
    whole = llm.generate("the quick brown fox", temperature=0.0, max_tokens=40, ignore_eos=True).text
    stop = whole[3:5]
    answer = llm.generate("the quick brown fox", temperature=0.0, max_tokens=40, ignore_eos=True, stop=stop).answers[0]
    assert (answer.text, answer.finish, answer.stopped_by) == (whole[: whole.index(stop)], "stop", stop)
    assert not llm._engine.core.has_work


def test_chat_and_logprobs(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    result = llm.generate(messages, logprobs=1, prompt_logprobs=0, **GREEDY)
    (answer,) = result.answers
    assert [row.token for row in answer.logprobs] == list(answer.tokens)
    assert all(row.top[0].token == row.token for row in answer.logprobs)
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens - 1
    assert [row.token for row in answer.prompt_logprobs] == llm.tokenize(messages)[1:]


def test_scoring_a_prompt_draws_nothing(llm: LLM) -> None:
    (answer,) = llm.generate("a prompt to score", max_tokens=0, prompt_logprobs=0).answers
    assert (answer.tokens, answer.finish) == ((), "length")
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens - 1


@pytest.mark.parametrize(
    ("prompt", "options", "param"),
    [("hi", {"temperature": -1.0}, "temperature"), ([], {}, "prompt"), ("hi", {"max_tokens": 5000}, "max_tokens")],
)
def test_mistakes_are_raised_before_anything_runs(llm: LLM, prompt: object, options: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate_batch(["fine", prompt], **options)
    assert caught.value.param == param
    assert not llm._engine.core.has_work


def test_no_such_model() -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        LLM("/nowhere/at all")


def test_answers_of_a_form(llm: LLM) -> None:
    results = llm.generate_batch(PROMPTS, n=2, regex="[0-9]{3}x", temperature=2.0, max_tokens=9)
    assert all(answer.text[:3].isdigit() and answer.text[3:] == "x" for result in results for answer in result.answers)
    assert llm.generate("a", choice=["left", "right"], max_tokens=9).text in ("left", "right")
    with pytest.raises(InvalidRequest, match="unclosed"):
        llm.generate("a", regex="(")
    with pytest.raises(InvalidRequest, match="one grammar"):
        llm.generate("a", regex="a", json_object=True)
