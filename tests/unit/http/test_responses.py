"""The Responses API through the official client: whole, streamed, parsed, with tools, with thoughts, refused."""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from engine.core.errors import Overloaded, Unavailable
from engine.core.types import GrammarKind
from tests.unit.http.conftest import Service

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


async def ask(service: Service, **fields: Any) -> Any:
    return await service.openai.responses.create(**({"model": "tiny", "input": "hi"} | fields))


def rendered(service: Service) -> str:
    return service.model.tokenizer.decode(service.generator.calls[-1].tokens)


async def test_a_whole_answer(service: Service) -> None:
    service.answers("naïve", end=True)
    answer = await ask(service, instructions="be brief", max_output_tokens=20, temperature=0.5, metadata={"a": "b"})
    assert (answer.object, answer.status, answer.output_text, answer.store) == ("response", "completed", "naïve", False)
    (item,) = answer.output
    assert (item.type, item.role, item.status, item.content[0].type) == (
        "message",
        "assistant",
        "completed",
        "output_text",
    )
    (call,) = service.generator.calls
    expected = "<|begin|><|role|>system\nbe brief<|end|><|role|>user\nhi<|end|><|role|>assistant\n"
    assert call.tokens == service.model.tokenizer.encode(expected, add_special_tokens=False)
    assert (call.sampling.max_tokens, call.sampling.temperature) == (20, 0.5)
    assert (answer.temperature, answer.max_output_tokens, answer.metadata) == (0.5, 20, {"a": "b"})
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(call.tokens), len("naïve".encode()) + 1)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 0)


async def test_an_answer_that_was_cut_is_incomplete(service: Service) -> None:
    service.answers("abcdef")
    answer = await ask(service, max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output_text, answer.output[0].status) == ("abcd", "incomplete")
    events = [event async for event in await ask(service, max_output_tokens=4, stream=True)]
    assert events[-1].type == "response.incomplete" and events[-1].response.output[0].status == "incomplete"


async def test_the_events_of_a_stream(service: Service) -> None:
    service.answers("hé", end=True)
    events = [event async for event in await ask(service, stream=True)]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert [event.delta for event in events[4:6]] == ["h", "é"] and events[6].text == "hé"
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    final = events[-1].response
    assert final.output_text == "hé" and final.usage.output_tokens == 4
    assert {event.item_id for event in events[3:8]} == {final.output[0].id} and final.id == events[0].response.id
    raw = await service.http.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True})
    assert raw.text.startswith("event: response.created\ndata: {") and "[DONE]" not in raw.text
    assert (
        raw.headers["x-baton-decode-worker"] == "d0"
        and raw.headers["x-request-id"] == json.loads(raw.text.splitlines()[1].removeprefix("data: "))["response"]["id"]
    )


class City(BaseModel):
    name: str
    people: int


async def test_the_client_s_parse_and_stream_helpers(service: Service) -> None:
    service.answers('{"name":"Bonn","people":3}', end=True)
    parsed = await service.openai.responses.parse(model="tiny", input="hi", text_format=City)
    assert parsed.output_parsed == City(name="Bonn", people=3)
    async with service.openai.responses.stream(model="tiny", input="hi", text_format=City) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text and final.output_parsed == City(name="Bonn", people=3)
    await ask(service, text={"format": {"type": "json_object"}})
    kinds = [call.sampling.grammar.kind for call in service.generator.calls]
    assert kinds == [GrammarKind.JSON_SCHEMA] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_and_its_output(tools: Service, stream: bool) -> None:
    tools.answers("<think>hm</think>Let me see.\n" + CALL, end=True)
    if stream:
        async with tools.openai.responses.stream(model="tiny", input="hi", tools=[WEATHER]) as events:
            kinds = [event.type async for event in events]
            answer = await events.get_final_response()
        assert "response.function_call_arguments.done" in kinds and "response.reasoning_text.delta" in kinds
    else:
        answer = await ask(tools, tools=[WEATHER])
    thoughts, message, call = answer.output
    assert (thoughts.type, thoughts.content[0].text, message.content[0].text) == ("reasoning", "hm", "Let me see.")
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Bonn"})
    assert answer.usage.output_tokens_details.reasoning_tokens >= 2
    tools.answers("fine", end=True)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    again = await ask(tools, input=[{"role": "user", "content": "hi"}, *answer.output, output], tools=[WEATHER])
    assert again.output_text == "fine"
    shown = rendered(tools)
    assert 'Let me see.<tool_call>{"name": "weather"' in shown and f"[tool]4({call.call_id})" in shown


async def test_forced_and_single_calls(tools: Service) -> None:
    tools.answers(CALL + "\n" + CALL, end=True)
    answer = await ask(
        tools, tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False
    )
    assert [item.type for item in answer.output] == ["function_call"] and answer.tool_choice.name == "weather"
    assert tools.generator.calls[0].sampling.grammar.kind is GrammarKind.LARK


async def test_items_of_every_kind(tools: Service) -> None:
    tools.answers("x", end=True)
    items: list[Any] = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "be "}, {"type": "input_text", "text": "kind"}],
        },
        {"type": "message", "role": "user", "content": "a"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "7"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"role": "user", "content": "c"},
    ]
    await ask(tools, input=items, instructions="Now")
    assert rendered(tools).startswith("[system]Now\n\nbe kind[user]a[assistant]<tool_call>")
    assert rendered(tools).endswith("[tool]7(c1)[assistant]b[user]c[assistant]")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "no"}, "strict": True}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"extra_body": {"max_tokens": 4}}, "max_tokens"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"temperature": -1}, "temperature"),
    ],
)
async def test_what_is_refused_is_named(service: Service, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(service, **fields)
    assert caught.value.param == param and not service.generator.calls


async def test_what_asks_for_nothing_is_taken(service: Service) -> None:
    service.answers("a", end=True)
    include: Any = ["reasoning.encrypted_content"]
    answer = await ask(service, store=False, background=False, truncation="disabled", include=include, top_logprobs=0)
    assert answer.output_text == "a"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_status(service: Service, stream: bool) -> None:
    service.generator.error = Overloaded("too many", retry_after_s=1.2)
    with pytest.raises(openai.RateLimitError) as caught:
        await ask(service, stream=stream)
    assert caught.value.response.headers["retry-after"] == "2"
    with pytest.raises(openai.NotFoundError):
        await ask(service, model="other", stream=stream)


async def test_a_stream_that_breaks_off_ends_as_failed(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after, service.generator.error = 2, Unavailable("the worker was lost")
    events = [event async for event in await ask(service, stream=True)]
    assert events[-1].type == "response.failed" and events[-1].response.status == "failed"
    assert events[-1].response.error.message == "the worker was lost"
    assert events[-1].response.output_text == "ab"
