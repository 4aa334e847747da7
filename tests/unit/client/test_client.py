"""The blocking and the asynchronous client give the same results and raise the same errors."""

import threading
from contextlib import aclosing, closing
from typing import Any

import pytest

from baton import AsyncClient, Client
from engine.core.errors import BatonError, DeadlineExceeded, InvalidRequest, NotFound, Overloaded, Unavailable
from engine.core.types import Sampling
from tests.unit.client.conftest import Service

MESSAGES = [{"role": "user", "content": "hi"}]


async def call(kind: str, target: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """One method of either client; a stream comes as a list."""
    if kind == "sync":
        with Client(target) as client:
            result = getattr(client, method)(*args, **kwargs)
            return list(result) if method == "stream" else result
    async with AsyncClient(target) as client:
        result = getattr(client, method)(*args, **kwargs)
        return [chunk async for chunk in result] if method == "stream" else await result


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
async def test_generate(service: Service, kind: str) -> None:
    service.answers("naïve 🙂")
    result = await call(kind, service.target, "generate", "say", n=2, max_tokens=30, logprobs=1, prompt_logprobs=0)
    prompt = service.model.tokenizer.encode("say")
    assert (result.text, len(result.answers)) == ("naïve 🙂", 2)
    answer = result.answers[1]
    assert (answer.text, answer.finish, answer.stopped_by) == ("naïve 🙂", "stop", answer.tokens[-1])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(answer.tokens))
    assert answer.usage.cached_tokens == 3
    assert b"".join(row.piece for row in answer.logprobs).decode() == "naïve 🙂<|end|>"
    assert answer.logprobs[0].top[0].token == 0
    assert len(answer.prompt_logprobs) == len(prompt) - 1
    assert answer.timing is not None and answer.timing.decode_worker == "d0"


@both
async def test_stream(service: Service, kind: str) -> None:
    service.answers("ab STOP")
    chunks = await call(kind, service.target, "stream", MESSAGES, stop="STOP", max_tokens=30)
    assert "".join(chunk.text for chunk in chunks) == "ab "
    assert [chunk.finish for chunk in chunks][-2:] == [None, "stop"]
    assert chunks[-1].stopped_by == "STOP"


@both
@pytest.mark.parametrize("prompt", [[5, 6, 7], MESSAGES, "hi"], ids=["ids", "chat", "text"])
async def test_prompts_of_every_kind(service: Service, kind: str, prompt: Any) -> None:
    await call(kind, service.target, "generate", prompt, max_tokens=2)
    (made,) = service.generator.calls
    text = "<|begin|><|role|>user\nhi<|end|><|role|>assistant\n" if prompt is MESSAGES else "<|begin|>hi"
    by_text = list(service.model.tokenizer.encode(text, add_special_tokens=False))
    assert list(made.tokens) == ([5, 6, 7] if prompt == [5, 6, 7] else by_text)


@both
async def test_sampling_reaches_the_engine(service: Service, kind: str) -> None:
    given = {"max_tokens": 4, "temperature": 0.5, "seed": 9, "logit_bias": {5: -1.0}, "ignore_eos": True, "top_k": 3}
    await call(kind, service.target, "generate", "hi", request_id="mine", **given)
    (made,) = service.generator.calls
    expected = Sampling(max_tokens=4, temperature=0.5, seed=9, logit_bias=((5, -1.0),), top_k=3)
    assert (made.sampling, made.request_id) == (expected, "mine-0")


@both
async def test_look_ups(service: Service, kind: str) -> None:
    (model,) = await call(kind, service.target, "models")
    assert (model.name, model.max_model_len, model.vocab_size) == ("tiny", 512, service.model.vocab_size)
    assert await call(kind, service.target, "tokenize", "the dog") == list(service.model.tokenizer.encode("the dog"))
    assert len(await call(kind, service.target, "tokenize", MESSAGES)) > 5


@both
@pytest.mark.parametrize(
    ("kwargs", "error", "param"),
    [
        ({"prompt": "hi", "temperature": -1.0}, InvalidRequest, "temperature"),
        ({"prompt": []}, InvalidRequest, "prompt"),
        ({"prompt": "hi", "model": "other"}, NotFound, "model"),
        ({"prompt": "hi", "temprature": 1.0}, InvalidRequest, "temprature"),
        ({"prompt": [1.5]}, InvalidRequest, "prompt"),
        ({"prompt": [{"role": "user", "text": "hi"}]}, InvalidRequest, "prompt"),
        ({"prompt": "hi", "max_tokens": -1}, InvalidRequest, "max_tokens"),
    ],
)
async def test_mistakes(service: Service, kind: str, kwargs: Any, error: type[BatonError], param: str | None) -> None:
    with pytest.raises(error) as caught:
        await call(kind, service.target, "generate", **kwargs)
    assert caught.value.param == param
    assert service.generator.calls == []


@both
async def test_overload_and_when_to_come_back(service: Service, kind: str) -> None:
    service.generator.error = Overloaded("too many requests wait", retry_after_s=1.5)
    with pytest.raises(Overloaded, match="too many requests wait") as caught:
        await call(kind, service.target, "generate", "hi")
    assert caught.value.retry_after_s == 1.5


@both
async def test_a_deadline(service: Service, kind: str) -> None:
    service.generator.pause_after = 0
    with pytest.raises(DeadlineExceeded):
        await call(kind, service.target, "generate", "hi", timeout_s=0.3)


@both
@pytest.mark.parametrize("method", ["generate", "tokenize", "models"])
async def test_nobody_there(kind: str, method: str) -> None:
    args = () if method == "models" else ("hi",)
    with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1:1"):
        await call(kind, "127.0.0.1:1", method, *args)


def test_closing_a_stream_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    closed = _watch_close(service)
    with Client(service.target) as client, closing(client.stream("hi")) as chunks:
        next(chunks)
        assert service.generator.running == 1
        chunks.close()
        assert closed.wait(10)


async def test_closing_an_async_stream_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    closed = _watch_close(service)
    async with AsyncClient(service.target) as client, aclosing(client.stream("hi")) as chunks:
        await anext(chunks)
        await chunks.aclose()
        assert closed.wait(10)


def _watch_close(service: Service) -> threading.Event:
    """Let calls wait after two tokens; the event is set when one ends."""
    closed = threading.Event()
    generator, inner = service.generator, service.generator._play
    generator.pause_after = 2

    async def watched(made: Any) -> Any:
        try:
            async for delta in inner(made):
                yield delta
        finally:
            closed.set()

    generator._play = watched  # type: ignore[method-assign]
    return closed


def test_forms_reach_the_engine(service: Service) -> None:
    service.answers("a")
    forms: list[dict[str, Any]] = [
        {"json_schema": '{"type": "object"}'},
        {"json_object": True},
        {"regex": "a"},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a"'},
    ]
    with Client(service.target) as client:
        for form in forms:
            assert client.generate("hi", **form).text == "a"
        with pytest.raises(InvalidRequest, match="unclosed"):
            client.generate("hi", regex="(")
        with pytest.raises(InvalidRequest):
            client.generate("hi", choice=7)  # type: ignore[arg-type]
    assert all(call.sampling.grammar for call in service.generator.calls) and len(service.generator.calls) == 5
