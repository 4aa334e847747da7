"""Calls of tools and thoughts through the official client: whole, streamed, forced, and sent back."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from engine.core.types import GrammarKind
from router.api import ServiceStatus
from router.doors.config import DoorConfig
from router.http.app import create_app
from router.text.model import ServedModel, load_served_model
from tests.fakes.generator import FakeGenerator, FakeStatus
from tests.fakes.http_server import serving
from tests.fakes.text_models import byte_level_tokenizer, tokenizer_config, write_checkpoint
from tests.unit.http.conftest import Service

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% if message['tool_call_id'] %}({{ message['tool_call_id'] }}){% endif %}<|end|>{% endfor %}"
    "[assistant]{% if think %}<think>\n{% endif %}{# </think> #}"
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "how it is", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
HI: list[Any] = [{"role": "user", "content": "hi"}]
TWO = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], ServedModel]]:
    """Models by chat template and parser, each made once for all tests here."""
    from tokenizers import Tokenizer

    made = {}

    def model_of(template: str, parser: str) -> ServedModel:
        if (template, parser) not in made:
            folder = tmp_path_factory.mktemp("model")
            tokenizer = Tokenizer.from_str(byte_level_tokenizer())
            tokenizer.add_special_tokens(["[TOOL_CALLS]"])
            write_checkpoint(folder, tokenizer, tokenizer_config(chat_template=template), max_position_embeddings=4096)
            made[template, parser] = load_served_model(folder, "tiny", tool_parser=parser)
        return made[template, parser]

    yield model_of
    for model in made.values():
        model.grammars.close()


@pytest.fixture
async def tools(model_of: Callable[[str, str], ServedModel], request: pytest.FixtureRequest):  # noqa: ANN201
    from httpx import AsyncClient

    model = model_of(*getattr(request, "param", (TEMPLATE, "auto")))
    generator, status = FakeGenerator(lambda call: list(call.tokens)), FakeStatus(ServiceStatus(ready=True))
    app = create_app(generator, model, status, DoorConfig(), CollectorRegistry())
    async with serving(app) as url, AsyncClient(base_url=url, timeout=20) as http:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Service(model, generator, status, url, http, client)


async def ask(service: Service, **fields: Any) -> Any:
    return await service.openai.chat.completions.create(**({"model": "tiny", "messages": HI, "tools": TOOLS} | fields))


async def test_calls_of_a_whole_answer(tools: Service) -> None:
    tools.answers(TWO, end=True)
    (choice,) = (await ask(tools)).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name) for call in calls] == [("function", "weather"), ("function", "now")]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Köln"}, {}]
    assert len({call.id for call in calls}) == 2
    rendered = tools.model.tokenizer.decode(tools.generator.calls[0].tokens)
    assert '"name": "weather"' in rendered and '"description": "how it is"' in rendered


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_calls_in_a_stream(tools: Service, chunk: int) -> None:
    tools.answers(TWO, end=True)
    tools.generator.chunk = chunk
    content, calls, finish, first = "", {}, None, []
    async for event in await ask(tools, stream=True):
        (choice,) = event.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or []:
            if call.index not in calls:
                first.append((call.index, bool(call.id), call.type, call.function.name))
                calls[call.index] = ""
            else:
                assert (call.id, call.function.name) == (None, None)
            calls[call.index] += call.function.arguments
    assert (content, finish) == ("Let me see.", "tool_calls")
    assert first == [(0, True, "function", "weather"), (1, True, "function", "now")]
    assert [json.loads(text) for text in calls.values()] == [{"city": "Köln"}, {}]


async def test_the_client_s_own_stream_helper_reads_it(tools: Service) -> None:
    tools.answers(TWO, end=True)
    async with tools.openai.chat.completions.stream(model="tiny", messages=HI, tools=TOOLS) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Köln"}


async def test_one_call_when_parallel_ones_are_not_wanted(tools: Service) -> None:
    tools.answers(TWO, end=True)
    (choice,) = (await ask(tools, parallel_tool_calls=False)).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]


async def test_an_answer_with_calls_goes_back_with_their_results(tools: Service) -> None:
    tools.answers(TWO, end=True)
    message = (await ask(tools)).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "4"} for call in message.tool_calls]
    tools.answers("fine")
    answer = await ask(tools, messages=[*HI, message, *results])
    assert answer.choices[0].message.content == "fine" and answer.choices[0].message.tool_calls is None
    rendered = tools.model.tokenizer.decode(tools.generator.calls[-1].tokens)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "K' in rendered, "arguments are a value again"
    assert f"[tool]4({message.tool_calls[0].id})" in rendered


async def test_no_tools_no_calls(tools: Service) -> None:
    tools.answers(TWO, end=True)
    for fields in ({"tool_choice": "none"}, {"tools": openai.omit}):
        (choice,) = (await ask(tools, **fields)).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (TWO, None, "stop")
        assert "weather" not in tools.model.tokenizer.decode(tools.generator.calls[-1].tokens)


@pytest.mark.parametrize(
    ("choice", "functions"),
    [("required", ["weather", "now"]), ({"type": "function", "function": {"name": "now"}}, ["now"])],
)
async def test_forced_calls_are_a_grammar(tools: Service, choice: Any, functions: list[str]) -> None:
    tools.answers('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', end=True)
    (said,) = (await ask(tools, tool_choice=choice)).choices
    assert [call.function.name for call in said.message.tool_calls] == ["now"]
    grammar = tools.generator.calls[0].sampling.grammar
    assert grammar is not None and grammar.kind is GrammarKind.LARK
    assert [name for name in ("weather", "now") if f'{{\\"name\\": \\"{name}\\"' in grammar.source] == functions


async def test_a_tool_whose_schema_is_none_is_refused_when_it_is_forced(tools: Service) -> None:
    broken = [{"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}]
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(tools, tools=broken, tool_choice="required")
    assert caught.value.param == "tools" and not tools.generator.calls
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(tools, tool_choice="required", response_format={"type": "json_object"})
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("tools", [("[TOOL_CALLS] {{ messages[0].content }}", "auto")], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_mark_that_is_a_special_token(tools: Service, stream: bool) -> None:
    mark = tools.model.special_id("[TOOL_CALLS]")
    assert mark is not None
    listed = tools.byte_tokens('[{"name": "now", "arguments": {}}]')
    tools.generator.script = lambda _: [mark, *listed, tools.end]
    answer = await ask(tools, stream=stream)
    if stream:
        deltas = [event.choices[0].delta async for event in answer]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        assert not any(delta.content for delta in deltas)
    else:
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].message.content is None
    assert calls[0].function.name == "now" and len(calls[0].id) == 9, "as Mistral's templates want ids"
    await ask(tools, tool_choice="required")
    assert f"<[{mark}]>" in tools.generator.calls[-1].sampling.grammar.source
    (plain,) = (await ask(tools, tools=openai.omit)).choices
    assert plain.message.content.startswith("[{"), "nobody asked to see the mark"


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_apart(tools: Service, stream: bool) -> None:
    tools.answers("<think>\nso: 1+1\n</think>\n\ntwo", end=True)
    answer = await ask(tools, tools=openai.omit, stream=stream)
    parts = [event.choices[0].delta async for event in answer] if stream else [answer.choices[0].message]
    assert "".join(part.content or "" for part in parts) == "two"
    thoughts = [(part.model_extra or {}).get("reasoning_content") or "" for part in parts]
    assert "".join(thoughts) == "so: 1+1"


async def test_thoughts_that_the_template_began(tools: Service) -> None:
    tools.answers("hm</think>yes", end=True)
    kwargs: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"think": True}}}
    message = (await ask(tools, tools=openai.omit, **kwargs)).choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("yes", "hm")
    tools.answers('{"a": 1}', end=True)
    message = (
        (await ask(tools, tools=openai.omit, response_format={"type": "json_object"}, **kwargs)).choices[0].message
    )
    assert message.content == '{"a": 1}', "an answer of a form does not think"


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("kind", ["parse", "schema", "object", "regex", "choice", "grammar", "guided"])
async def test_forms_reach_the_engine(service: Service, kind: str) -> None:
    service.answers('{"name":"Bonn","people":3}', end=True)
    chat = service.openai.chat.completions
    if kind == "parse":
        parsed = (await chat.parse(model="tiny", messages=HI, response_format=City)).choices[0].message.parsed
        assert parsed == City(name="Bonn", people=3)
    else:
        fields: dict[str, Any] = {
            "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": {}}}},
            "object": {"response_format": {"type": "json_object"}},
            "regex": {"extra_body": {"structured_outputs": {"regex": "a+"}}},
            "choice": {"extra_body": {"structured_outputs": {"choice": ["a", "b"]}}},
            "grammar": {"extra_body": {"structured_outputs": {"grammar": 'start: "a"'}}},
            "guided": {"extra_body": {"guided_json": json.dumps(PARAMETERS)}},
        }[kind]
        await chat.create(model="tiny", messages=HI, n=2, **fields)
    kinds = {call.sampling.grammar.kind for call in service.generator.calls if call.sampling.grammar}
    expected = {
        "parse": GrammarKind.JSON_SCHEMA, "schema": GrammarKind.LENIENT_JSON_SCHEMA, "object": GrammarKind.JSON_SCHEMA,
        "regex": GrammarKind.REGEX, "choice": GrammarKind.LARK, "grammar": GrammarKind.LARK,
        "guided": GrammarKind.JSON_SCHEMA,
    }  # fmt: skip
    assert kinds == {expected[kind]} and len(service.generator.calls) == (1 if kind == "parse" else 2)


async def test_completions_have_forms_too(service: Service) -> None:
    service.answers("a", end=True)
    await service.openai.completions.create(model="tiny", prompt=["x", "y"], extra_body={"guided_choice": ["a", "b"]})
    assert [call.sampling.grammar.kind for call in service.generator.calls] == [GrammarKind.LARK] * 2


async def test_a_hostile_schema_holds_up_nobody(service: Service) -> None:
    """It takes the compiler minutes; its process gets seconds, and everybody else is answered meanwhile."""
    patterns = [{"type": "string", "pattern": f"(.*{chr(97 + n % 26)}){{20}}"} for n in range(60)]
    body = {"model": "tiny", "messages": HI, "extra_body": {"guided_json": {"allOf": patterns}}}
    hostile = asyncio.ensure_future(service.openai.chat.completions.create(**body))
    for _ in range(5):
        await service.openai.completions.create(model="tiny", prompt="hi", max_tokens=2)
    assert not hostile.done()
    with pytest.raises(openai.BadRequestError, match="too complex") as caught:
        await hostile
    assert caught.value.param == "guided_json"
    assert len(service.generator.calls) == 5
