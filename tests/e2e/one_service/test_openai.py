"""The official OpenAI client, unmodified, against a running service."""

import json
from collections.abc import Iterator

import openai
import pytest

from deploy.spawned import Service

pytestmark = pytest.mark.slow(seconds=60)


@pytest.fixture
def client(quiet_service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=quiet_service.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    (card,) = client.models.list().data
    return card.id


def test_completion_streamed_and_not_agree(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": "The first leg", "max_tokens": 20, "temperature": 0.0}
    whole = client.completions.create(**options)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    assert 0 < whole.usage.completion_tokens <= 20
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [finish for finish in finishes if finish] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_batch_of_token_prompts_with_n(client: openai.OpenAI, model: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    answer = client.completions.create(model=model, prompt=prompts, n=2, max_tokens=4, temperature=0.0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.choices[2].text == answer.choices[3].text


def test_chat_streamed(client: openai.OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Say something."}]
    chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=12, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_responses_streamed_and_not_agree_and_go_on(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "input": "Say something.", "max_output_tokens": 12, "temperature": 0.0}
    whole = client.responses.create(**options)
    assert whole.usage is not None and 0 < whole.usage.output_tokens <= 12
    with client.responses.stream(**options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text
    turns = [{"role": "user", "content": "Say something."}, *whole.output, {"role": "user", "content": "More."}]
    longer = client.responses.create(**(options | {"input": turns, "instructions": "Be brief."}))
    assert longer.usage is not None and longer.usage.input_tokens > whole.usage.input_tokens
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}}
    number = client.responses.create(**(options | {"text": form, "temperature": 1.0, "extra_body": {"seed": 1}}))
    assert number.status == "incomplete" or isinstance(json.loads(number.output_text), int)
    with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
        client.responses.create(**options, store=True)


def test_seeded_sampling_repeats(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": "Once more", "max_tokens": 24, "temperature": 1.0, "seed": 11}
    first, again = (client.completions.create(**options).choices[0].text for _ in range(2))
    other = client.completions.create(**(options | {"seed": 12})).choices[0].text
    assert first == again
    assert first != other


def test_logprobs_and_echo(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=[10, 11, 12], max_tokens=3, temperature=0.0, logprobs=2, echo=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) >= 4
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:] if value is not None)


def test_second_time_is_cached(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": list(range(100)), "max_tokens": 1}
    client.completions.create(**options)
    usage = client.completions.create(**options).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 96


def test_stop_string_is_not_part_of_the_answer(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": [20, 21, 22], "max_tokens": 40, "temperature": 0.0}
    text = client.completions.create(**options).choices[0].text
    stop = text[5:7]
    cut = client.completions.create(**options, stop=[stop]).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_errors_are_openai_errors(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=[1] * 500, max_tokens=100)
    assert "512" in str(caught.value)


def test_a_client_that_leaves_frees_everything(client: openai.OpenAI, model: str) -> None:
    """The fixture waits for the pages."""
    for _ in range(4):
        stream = client.completions.create(
            model=model, prompt=[7] * 64, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
