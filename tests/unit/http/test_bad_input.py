"""Whatever a client sends, it gets an OpenAI error object with the right status, and nothing reaches the router."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.unit.http.conftest import MAX_BODY_BYTES, Service

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hi"} | fields


def conversation(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


ELSEWHERE = {"$ref": "http://127.0.0.1:1/x"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def schema_format(schema: dict, **fields: Any) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def called(arguments: str) -> dict:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (COMPLETIONS, completion(prompt=""), 200, None),  # BOS alone is a prompt
        (COMPLETIONS, completion(prompt=[]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[[]]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[1, "a"]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[1.5]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[True]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[-1]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[10**9]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=[10**30]), 400, "prompt"),
        (COMPLETIONS, completion(prompt=None), 400, "prompt"),
        (COMPLETIONS, completion(prompt={"text": "hi"}), 400, "prompt"),
        (COMPLETIONS, {"model": "tiny"}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "hi"}, 400, "model"),
        (COMPLETIONS, completion(model="gpt-9"), 404, "model"),
        (COMPLETIONS, completion(model=5), 400, "model"),
        (COMPLETIONS, completion(max_tokens=512), 400, "max_tokens"),
        (COMPLETIONS, completion(max_tokens=-1), 400, "max_tokens"),
        (COMPLETIONS, completion(max_tokens=0), 400, "max_tokens"),
        (COMPLETIONS, completion(max_tokens="5"), 400, "max_tokens"),
        (COMPLETIONS, completion(temperature="hot"), 400, "temperature"),
        (COMPLETIONS, completion(logprobs=21), 400, "logprobs"),
        (COMPLETIONS, completion(logprobs=True), 400, "logprobs"),
        (COMPLETIONS, completion(best_of=3), 400, "best_of"),
        (COMPLETIONS, completion(best_of=2, n=2), 200, None),
        (COMPLETIONS, completion(suffix="end"), 400, "suffix"),
        (COMPLETIONS, completion(n=9), 400, "n"),
        (COMPLETIONS, completion(prompt=["a"] * 9), 400, "n"),
        (COMPLETIONS, completion(kv_transfer_params={"remote_host": "10.0.0.1"}), 400, "kv_transfer_params"),
        (COMPLETIONS, completion(timeout_s=0), 400, "timeout_s"),
        (COMPLETIONS, completion(min_tokens=17), 400, "min_tokens"),
        (COMPLETIONS, completion(temperature=10**400), 400, "temperature"),
        (COMPLETIONS, completion(logit_bias={"9" * 5000: 1}), 400, "logit_bias"),
        (COMPLETIONS, completion(logit_bias={"5": None}), 400, "logit_bias"),
        (COMPLETIONS, completion(model="\ud800"), 400, None),
        (COMPLETIONS, completion(**{"\ud800": 1}), 400, None),
        (COMPLETIONS, [], 400, None),
        (COMPLETIONS, "hi", 400, None),
        (COMPLETIONS, None, 400, None),
        (CHAT, conversation(messages=[]), 400, "messages"),
        (CHAT, conversation(messages="hi"), 400, "messages"),
        (CHAT, conversation(messages=[{"role": "user"}]), 200, None),
        (CHAT, conversation(messages=[{"content": "hi"}]), 400, "messages"),
        (CHAT, conversation(messages=[{"role": "nobody", "content": "hi"}]), 400, "messages"),
        (CHAT, conversation(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages"),
        (CHAT, conversation(messages=[{"role": "assistant", "tool_calls": [{"id": "1"}]}]), 400, "messages"),
        (CHAT, conversation(tools=[{"type": "function"}]), 400, "tools"),
        (CHAT, conversation(response_format={"type": "json_object"}), 200, None),
        (CHAT, conversation(response_format={"type": "json_schema"}), 400, "response_format"),
        (CHAT, conversation(response_format={"type": "xml"}), 400, "response_format"),
        (CHAT, conversation(response_format=schema_format({"type": "strin"})), 400, "response_format"),
        (CHAT, conversation(response_format=schema_format({"uniqueItems": True}, strict=True)), 400, "response_format"),
        (CHAT, conversation(response_format=schema_format({"uniqueItems": True})), 200, None),
        (CHAT, conversation(response_format=schema_format({"\ud800": {"pattern": "\ud800"}})), 400, None),
        (
            CHAT,
            conversation(response_format=schema_format({"$ref": "http://127.0.0.1:1/x"}, strict=True)),
            400,
            "response_format",
        ),
        (CHAT, conversation(response_format=schema_format({"enum": ["x" * 200_000]})), 400, "response_format"),
        (CHAT, conversation(guided_json="{"), 400, "guided_json"),
        (CHAT, conversation(guided_json="[]"), 400, "guided_json"),
        (CHAT, conversation(guided_regex="(a"), 400, "guided_regex"),
        (CHAT, conversation(guided_regex=""), 400, "guided_regex"),
        (CHAT, conversation(guided_choice=[]), 400, "guided_choice"),
        (CHAT, conversation(guided_choice=["a", "b"]), 200, None),
        (CHAT, conversation(guided_choice=["a"], guided_regex="a"), 400, "guided_choice"),
        (CHAT, conversation(guided_choice=["a"], ignore_eos=True), 400, "ignore_eos"),
        (COMPLETIONS, completion(structured_outputs={"grammar": "start: nothing"}), 400, "structured_outputs"),
        (COMPLETIONS, completion(structured_outputs={"xml": "a"}), 400, "structured_outputs"),
        (COMPLETIONS, completion(structured_outputs={"grammar": 'start: "a"'}), 200, None),
        (CHAT, conversation(tools=[TOOL]), 400, "tools"),  # this model's template knows none
        (CHAT, conversation(tools=[TOOL], tool_choice="none"), 200, None),
        (CHAT, conversation(tools=[TOOL, TOOL]), 400, "tools"),
        (CHAT, conversation(tools=[{"type": "function", "function": {"name": "a b"}}]), 400, "tools"),
        (CHAT, conversation(tools=[TOOL], tool_choice=named("g")), 400, "tool_choice"),
        (CHAT, conversation(messages=[called("{}"), {"role": "tool", "tool_call_id": "1", "content": "4"}]), 200, None),
        (CHAT, conversation(messages=[called("{")]), 400, "messages"),
        (CHAT, conversation(top_logprobs=2), 400, "top_logprobs"),
        (CHAT, conversation(top_logprobs=0), 200, None),
        (CHAT, conversation(functions=None), 200, None),
        (CHAT, conversation(tools=[], tool_choice="auto", parallel_tool_calls=False, modalities=["text"]), 200, None),
        (CHAT, conversation(tool_choice="required"), 400, "tool_choice"),
        (CHAT, conversation(modalities=["audio"]), 400, "modalities"),
        (COMPLETIONS, completion(stream_options={"include_usage": True}), 400, "stream_options"),
        (CHAT, conversation(max_tokens=3, max_completion_tokens=4), 400, "max_tokens"),
        (CHAT, conversation(chat_template_kwargs={"messages": []}), 400, "chat_template_kwargs"),
        (CHAT, conversation(chat_template_kwargs={"bos_token": "\ud800"}), 400, None),
        (CHAT, conversation(messages=[{"role": "nobody", "content": "\ud800"}]), 400, None),
        (CHAT, conversation(stream_options={"include_usage": "yes"}), 400, "stream_options"),
        ("/tokenize", {}, 400, None),
    ],
)
async def test_status_and_param(service: Service, path: str, body: Any, status: int, param: str | None) -> None:
    response = await service.http.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code == status, response.text
    if status != 200:
        assert error_of(response)["param"] == param
        assert error_of(response)["type"] == "invalid_request_error"
        assert service.generator.calls == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model": "tiny", "prompt": "hi"',
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "a\\ud800b"}',
        b'{"model": "tiny", "prompt": "hi", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "hi", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "hi", "temperature": 1e999}',
        b"\x00" * 100,
        b"[" * 100_000,
    ],
    ids=["empty", "brace", "cut", "invalid UTF-8", "surrogate", "NaN", "infinity", "1e999", "zeros", "deep"],
)
async def test_bodies_that_are_no_request(service: Service, content: bytes) -> None:
    response = await service.http.post(COMPLETIONS, content=content, headers=JSON)
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"
    assert service.generator.calls == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, completion(prompt=["a"] * 100_000), "prompt"),
        (COMPLETIONS, completion(prompt=["a"] * 2000), "n"),
        (COMPLETIONS, completion(prompt=[[1]] * 100_000), "prompt"),
        (COMPLETIONS, completion(prompt=[1] * 100_000), "prompt"),
        (COMPLETIONS, completion(stop=[1] * 100_000), "stop"),
        (COMPLETIONS, completion(metadata={str(key): 1 for key in range(50_000)}), "metadata"),
        (COMPLETIONS, completion(logit_bias={str(key): "x" for key in range(50_000)}), "logit_bias"),
        (COMPLETIONS, completion(**{str(key): 1 for key in range(50_000)}), "0"),
        (COMPLETIONS, completion(**{"x" * 500_000: 1}), "x" * 64),
        (COMPLETIONS, completion(model="x" * 500_000), "model"),
        (CHAT, conversation(messages=[{"role": "user"}] * 30_000), "messages"),
        (CHAT, conversation(messages=[{}] * 100_000), "messages"),
        (CHAT, conversation(messages=[{"role": "user", "content": [{"type": "text"}] * 30_000}]), "messages"),
        (CHAT, conversation(chat_template_kwargs=dict.fromkeys(map(str, range(50_000)))), "chat_template_kwargs"),
        ("/tokenize", {"prompt": "x" * 900_000}, "prompt"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_masses_are_refused_with_one_short_complaint(
    service: Service, path: str, body: Any, param: str | None
) -> None:
    response = await service.http.post(path, json=body)
    assert response.status_code in (400, 404), response.text
    assert error_of(response)["param"] == param
    assert len(response.content) < 1000
    assert service.generator.calls == []


async def test_millions_of_lists_are_refused_before_they_are_parsed(service: Service) -> None:
    content = b'{"model": "tiny", "prompt": [' + b"[]," * 500_000 + b"[]]}"
    response = await service.http.post(COMPLETIONS, content=content, headers=JSON)
    assert (response.status_code, "lists and objects" in error_of(response)["message"]) == (400, True)
    text = '\\"[{' * 200_000  # what stands inside of strings does not count
    response = await service.http.post(COMPLETIONS, json=completion(prompt=text))
    assert error_of(response)["code"] == "context_length_exceeded"


async def test_an_image_is_refused_in_words(service: Service) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    response = await service.http.post(CHAT, json=conversation(messages=[{"role": "user", "content": parts}]))
    expected = "messages: content parts of type 'image_url' are not served, only 'text'"
    assert (response.status_code, error_of(response)["message"]) == (400, expected)


async def test_an_unknown_model_has_its_own_code(service: Service) -> None:
    response = await service.http.post(COMPLETIONS, json=completion(model="gpt/9"))
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_errors_carry_the_request_id(service: Service) -> None:
    response = await service.http.post(COMPLETIONS, json=completion(prompt=[]), headers={"x-request-id": "mine-7"})
    assert response.headers["x-request-id"] == "mine-7"
    assert (await service.http.post(COMPLETIONS, json=completion(prompt=[]))).headers["x-request-id"]
    assert (await service.http.get("/v1/nothing")).headers["x-request-id"]


async def test_too_long_a_prompt_has_its_own_code(service: Service) -> None:
    response = await service.http.post(COMPLETIONS, json=completion(prompt=[5] * 600))
    assert (response.status_code, error_of(response)["code"]) == (400, "context_length_exceeded")


async def test_a_body_that_is_not_sent_as_json(service: Service) -> None:
    response = await service.http.post(COMPLETIONS, content=json.dumps(completion()))
    assert (response.status_code, "content-type application/json" in response.text) == (400, True)


async def test_unknown_paths_and_methods(service: Service) -> None:
    response = await service.http.get("/v1/embeddings")
    assert (response.status_code, error_of(response)["message"]) == (404, "Not Found")
    response = await service.http.get(COMPLETIONS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    error_of(response)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_huge_body_is_refused_while_it_is_read(service: Service, declared: bool) -> None:
    size = 3 * MAX_BODY_BYTES
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < size:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    headers = JSON | ({"content-length": str(size)} if declared else {})
    response = await service.http.post(COMPLETIONS, content=parts(), headers=headers)
    assert (response.status_code, error_of(response)["type"]) == (413, "invalid_request_error")
    assert (await service.http.post(COMPLETIONS, json=completion())).status_code == 200


async def test_a_client_that_leaves_before_the_answer_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after = 2
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps(completion()).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await service.generator.paused.wait()
    assert service.generator.running == 1
    writer.close()
    await service.generator.idle.wait()
    assert reader.at_eof() or not service.generator.running


async def test_an_error_in_a_stream_is_an_event_and_no_done(service: Service) -> None:
    from engine.core.errors import Unavailable

    service.answers("abcdef")
    service.generator.pause_after, service.generator.error = 2, Unavailable("lost")
    response = await service.http.post(COMPLETIONS, json=completion(stream=True))
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["message"] == "lost"
    assert "[DONE]" not in response.text and '"stop"' not in response.text


async def test_a_whole_stream_ends_with_done(service: Service) -> None:
    response = await service.http.post(CHAT, json=conversation(stream=True, max_tokens=3))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    assert response.text.count("data: ") == 4


async def test_a_client_that_never_reads_holds_up_nobody(service: Service) -> None:
    tokens = service.byte_tokens("x" * 400)
    service.generator.script = lambda _: tokens
    body = json.dumps(completion(stream=True, max_tokens=400, logprobs=20, n=8)).encode()  # megabytes of events
    host, port = service.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    response = await service.http.post(COMPLETIONS, json=completion(max_tokens=400))
    assert response.json()["choices"][0]["text"] == "x" * 400
    writer.close()
    await service.generator.idle.wait()
