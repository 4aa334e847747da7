"""Answers of a form, calls of tools and all other features with the official client and over gRPC, of a real service.

The model is random: without the grammar nothing that it says would be JSON. Every request is handed over, so the first
token of each answer is drawn on one worker and the rest on another.
"""

import json
import os
import signal
from collections.abc import Iterator
from typing import Annotated, Any

import openai
import pytest
from pydantic import BaseModel, Field

from deploy.plain import PlainService, serve_plain
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow(seconds=25)

HI: list[Any] = [{"role": "user", "content": "A city, please."}]


class City(BaseModel):
    name: str = Field(max_length=12)
    people: int = Field(ge=0, le=9999)
    rivers: list[Annotated[str, Field(max_length=6)]] = Field(max_length=2)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 160, "minLength": 120},
        "people": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["name", "people"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
        "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[PlainService]:
    """One prefill and two decode workers."""
    model = ["--model", str(tiny_checkpoint("llama"))]
    workers = [
        ["prefill_worker", *model, "--kv-memory", "16MiB"],
        *(["decode_worker", *model, "--kv-memory", "16MiB", "--worker-id", f"decode-{n}"] for n in (0, 1)),
    ]
    router = [*model, "--model-name", "tiny", "--policy", "cost_always_hand_over", "--tool-parser", "hermes"]
    with serve_plain(workers, router) as service:
        service.wait_whole()
        yield service


@pytest.fixture
def client(service: PlainService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    service.wait_idle()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 4},
        {"presence_penalty": 1.5, "extra_body": {"min_tokens": 60}},
    ],
)
def test_parsed_answers(client: openai.OpenAI, sampling: dict[str, Any]) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=HI, response_format=City, n=3, max_tokens=600, **sampling
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, City)
    if sampling["temperature" if "temperature" in sampling else "presence_penalty"] == 1.5:
        assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_streamed_form_with_logprobs_is_the_whole_one(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": HI, "seed": 5, "logprobs": True, "max_tokens": 900}
    fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}
    whole = client.chat.completions.create(**fields).choices[0]
    streamed, rows = "", 0
    for event in client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            streamed += choice.delta.content or ""
            rows += len(choice.logprobs.content) if choice.logprobs else 0
    assert streamed == whole.message.content and set(json.loads(streamed)) == {"name", "people"}
    assert event.usage is not None and rows in (event.usage.completion_tokens, event.usage.completion_tokens - 1)


def test_forms_of_completions_and_stops(client: openai.OpenAI) -> None:
    choose = {"structured_outputs": {"choice": ["left", "right"]}}
    batch = client.completions.create(model="tiny", prompt=["a", "b"], n=2, temperature=2.0, extra_body=choose)
    assert {choice.text for choice in batch.choices} <= {"left", "right"} and len(batch.choices) == 4
    digits = {"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}
    (choice,) = client.completions.create(model="tiny", prompt="a", extra_body=digits).choices
    assert (len(choice.text), choice.text[3], choice.finish_reason) == (6, "-", "stop")
    (choice,) = client.completions.create(model="tiny", prompt="a", stop=["-"], extra_body=digits).choices
    assert (len(choice.text), choice.finish_reason) == (3, "stop")
    (choice,) = client.completions.create(model="tiny", prompt="a", max_tokens=2, extra_body=digits).choices
    assert choice.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": HI, "tools": TOOLS, "tool_choice": "required", "seed": 2}
    if stream:
        with client.chat.completions.stream(**fields, max_completion_tokens=400) as events:
            message = events.until_done().get_final_completion().choices[0].message
    else:
        (choice,) = client.chat.completions.create(**fields, max_tokens=400).choices
        message = choice.message
        assert choice.finish_reason in ("tool_calls", "length")
    assert message.tool_calls and not message.content
    for call in message.tool_calls[:1]:
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == ({"city"} if call.function.name == "weather" else set())
    named = {"type": "function", "function": {"name": "now"}}
    (choice,) = client.chat.completions.create(**(fields | {"tool_choice": named})).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["now"]


def test_what_cannot_be_followed_is_refused_with_the_field_s_name(client: openai.OpenAI) -> None:
    bad: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "strin"}}}},
        {"extra_body": {"structured_outputs": {"regex": "("}}},
        {"extra_body": {"guided_grammar": "start: nothing"}},
    ]
    for fields, param in zip(bad, ("response_format", "structured_outputs", "guided_grammar"), strict=True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=HI, **fields)
        assert caught.value.param == param


async def generate(stub: InferenceStub, **sampling: Any) -> tuple[str, list[str], int]:
    """Text, workers, and how it ended."""
    request = pb.GenerateRequest(text="A city: ", sampling=pb.SamplingParams(**({"max_tokens": 950} | sampling)))
    text, workers = "", []
    async for message in stub.Generate(request, timeout=120.0):
        text += message.text
        if message.finish:
            workers, end = [message.timing.prefill_worker, message.timing.decode_worker], message.finish
    return text, workers, end


async def test_forms_over_grpc_are_handed_over(service: PlainService) -> None:
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        for fields in ({"json_schema": json.dumps(SCHEMA)}, {"regex": "[0-9]{40}"}, {"grammar": 'start: "x"~9'},
                       {"choice": pb.Choice(texts=["yes", "no"])}, {"json_object": True}):  # fmt: skip
            text, workers, end = await generate(stub, temperature=1.0, seed=8, **fields)
            assert workers[0] == "prefill-0" and workers[1].startswith("decode-")
            if "json" in next(iter(fields)) and end == pb.GenerateResponse.FINISH_STOP:
                assert isinstance(json.loads(text), dict)
            assert end == pb.GenerateResponse.FINISH_STOP or "json_object" in fields
    service.wait_idle()


async def test_an_answer_goes_on_validly_where_its_worker_died(service: PlainService) -> None:
    """With the tokens that it would have had anyway. The last test here: one worker is gone after it."""
    wanted = {"json_schema": json.dumps(SCHEMA), "temperature": 0.8, "top_k": 4, "seed": 3}
    async with connect(service.grpc) as channel:
        stub = InferenceStub(channel)
        undisturbed, _, _ = await generate(stub, **wanted)
        request = pb.GenerateRequest(text="A city: ", sampling=pb.SamplingParams(max_tokens=950, **wanted))
        text, killed = "", ""
        async for message in stub.Generate(request, timeout=120.0):
            text += message.text
            if len(text) > 60 and not killed:
                running = [w for w in service.workers() if w["load"] and w["requests"] and "decode" in w["roles"]]
                killed = running[0]["id"]
                os.kill(service.worker_pids[1 + int(killed[-1])], signal.SIGKILL)
        assert message.timing.decode_worker != killed and message.finish == pb.GenerateResponse.FINISH_STOP
    assert text == undisturbed and set(json.loads(text)) == {"name", "people"}
