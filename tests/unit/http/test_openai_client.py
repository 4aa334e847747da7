"""The official client works unmodified: completions, chats, streams, log probabilities, errors."""

import openai
import pytest

from engine.core.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.unit.http.conftest import Service


async def test_models(service: Service) -> None:
    page = await service.openai.models.list()
    assert [card.id for card in page.data] == ["tiny"]
    assert (await service.openai.models.retrieve("tiny")).created == service.model.created_s
    with pytest.raises(openai.NotFoundError):
        await service.openai.models.retrieve("other")


async def test_completion(service: Service) -> None:
    service.answers("naïve 🙂", end=True)
    answer = await service.openai.completions.create(model="tiny", prompt="say", max_tokens=50)
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [(0, "naïve 🙂", "stop")]
    prompt = service.model.tokenizer.encode("say")
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len("naïve 🙂".encode()) + 1)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert service.generator.calls[0].tokens == prompt


async def test_completion_defaults_to_sixteen_tokens(service: Service) -> None:
    service.answers("x" * 40)
    answer = await service.openai.completions.create(model="tiny", prompt="say")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", [["one", "two"], [[5, 6, 7], [8, 9]], [5, 6, 7]], ids=["texts", "lists of ids", "ids"]
)
async def test_prompts_of_every_kind(service: Service, prompt: list, stream: bool) -> None:
    tokenizer = service.model.tokenizer
    batch = [tokenizer.encode(each) if isinstance(each, str) else each for each in prompt]
    batch = [prompt] if isinstance(prompt[0], int) else batch
    expected = [tokenizer.decode(each) for each in batch for _ in range(2)]
    texts = [""] * len(expected)
    answer = await service.openai.completions.create(model="tiny", prompt=prompt, n=2, stream=stream)
    if stream:
        async for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        texts = [choice.text for choice in answer.choices]
        assert answer.usage.prompt_tokens == sum(map(len, batch))
        assert answer.usage.prompt_tokens_details.cached_tokens == 3 * len(batch)
    assert texts == expected
    assert [list(call.tokens) for call in service.generator.calls] == [list(each) for each in batch for _ in range(2)]


async def test_streamed_completion_with_usage(service: Service) -> None:
    service.answers("añb", end=True)
    stream = await service.openai.completions.create(
        model="tiny", prompt="say", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["a", "", "ñ", "b", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


async def test_echo_with_logprobs(service: Service) -> None:
    service.answers("ab")
    prompt = service.byte_tokens("né")
    answer = await service.openai.completions.create(model="tiny", prompt=prompt, echo=True, logprobs=2, max_tokens=2)
    (choice,) = answer.choices
    assert choice.text == "néab"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["n", "bytes:\\xc3", "bytes:\\xa9", "a", "b"]
    assert logprobs.text_offset == [0, 1, 1, 2, 3]
    assert logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    ids = [*prompt[1:], *service.byte_tokens("ab")]
    assert logprobs.token_logprobs[1:] == [-token / 64 for token in ids]
    assert len(logprobs.top_logprobs[1]) == 3  # two likeliest and the drawn one


async def test_scoring_a_prompt_draws_nothing(service: Service) -> None:
    answer = await service.openai.completions.create(model="tiny", prompt="dog", echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("dog", "length")
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert choice.logprobs.tokens[0] == "<|begin|>" and len(choice.logprobs.tokens) == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 0


async def test_chat(service: Service) -> None:
    service.answers("hello", end=True)
    messages = [{"role": "user", "content": [{"type": "text", "text": "say "}, {"type": "text", "text": "hi"}]}]
    answer = await service.openai.chat.completions.create(model="tiny", messages=messages)
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello", "stop")
    (call,) = service.generator.calls
    rendered = "<|begin|><|role|>user\nsay hi<|end|><|role|>assistant\n"
    assert call.tokens == service.model.tokenizer.encode(rendered, add_special_tokens=False)
    assert call.sampling.max_tokens == service.model.max_model_len - len(call.tokens)


async def test_an_answer_can_be_sent_back_as_it_came(service: Service) -> None:
    service.answers("hello")
    messages: list = [{"role": "user", "content": "hi"}]
    answer = await service.openai.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=5)
    messages += [answer.choices[0].message, {"role": "user", "content": "again"}]
    again = await service.openai.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=5)
    assert again.choices[0].message.content == "hello"


async def test_streamed_chat(service: Service) -> None:
    service.answers("hé", end=True)
    stream = await service.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    roles, texts, reasons = {}, ["", ""], {}
    async for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            roles.setdefault(choice.index, choice.delta.role)
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert (roles, texts, reasons) == ({0: "assistant", 1: "assistant"}, ["hé", "hé"], {0: "stop", 1: "stop"})
    assert chunk.usage is not None and chunk.usage.completion_tokens == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs(service: Service, stream: bool) -> None:
    service.answers("é")
    first, second = service.byte_tokens("é")
    answer = await service.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2, stream=stream
    )
    rows = []
    for each in [chunk async for chunk in answer] if stream else [answer]:
        rows += each.choices[0].logprobs.content
    assert [(row.token, row.bytes, row.logprob) for row in rows] == [
        ("\ufffd", [0xC3], -first / 64),
        ("\ufffd", [0xA9], -second / 64),
    ]
    assert [top.logprob for top in rows[0].top_logprobs] == [0.0, -1 / 64]


async def test_every_parameter_reaches_the_engine(service: Service) -> None:
    service.answers("abc")
    await service.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        seed=11,
        logit_bias={"5": -3},
        stop=["zz"],
        max_completion_tokens=9,
        user="somebody",
        extra_body={
            "top_k": 7,
            "min_p": 0.01,
            "repetition_penalty": 1.2,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "timeout_s": 12.5,
            "priority": -1,
            "chat_template_kwargs": {"think": True},
        },
    )
    (call,) = service.generator.calls
    sampling = call.sampling
    assert (call.timeout_s, call.priority) == (12.5, -1)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.01)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.2)
    assert (sampling.seed, sampling.logit_bias, sampling.stop_token_ids) == (11, ((5, -3.0),), (9,))
    assert (sampling.max_tokens, sampling.min_tokens) == (9, 2)
    assert service.model.tokenizer.decode(call.tokens).endswith("assistant\nhm")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (Overloaded("too many requests wait", retry_after_s=1.2), openai.RateLimitError, 429),
        (Unavailable("no worker"), openai.InternalServerError, 503),
        (DeadlineExceeded("too late"), openai.InternalServerError, 504),
    ],
)
async def test_an_error_before_the_first_token_has_its_status(
    service: Service, error: Exception, kind: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    service.generator.error = error
    with pytest.raises(kind) as caught:
        await service.openai.completions.create(model="tiny", prompt="hi", stream=stream)
    assert caught.value.status_code == status
    assert caught.value.body["message"] == str(error)
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "2"


async def test_an_error_in_a_stream_is_raised_by_the_client(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after, service.generator.error = 2, Unavailable("the worker was lost")
    stream = await service.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    seen = ""
    with pytest.raises(openai.APIError, match="the worker was lost"):
        async for chunk in stream:
            seen += chunk.choices[0].delta.content
            assert chunk.choices[0].finish_reason is None
    assert seen == "ab"


async def test_leaving_a_stream_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after = 2
    stream = await service.openai.completions.create(model="tiny", prompt="hi", stream=True, n=3)
    async for _ in stream:
        break
    await stream.close()
    await service.generator.idle.wait()
    assert service.generator.running == 0
