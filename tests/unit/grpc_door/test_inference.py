"""baton.v1.Inference: every kind of prompt, all sampling fields, errors with details, deadlines, cancellation."""

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from engine.core.errors import DeadlineExceeded, Overloaded, Unavailable
from engine.core.types import GrammarKind
from engine.wire import inference_pb2 as pb
from tests.unit.grpc_door.conftest import MAX_MODEL_LEN, VOCAB_SIZE, Service

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CHAT = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])


async def generate(service: Service, **fields: Any) -> list[pb.GenerateResponse]:
    return [message async for message in service.stub.Generate(pb.GenerateRequest(**fields))]


def details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    raise AssertionError(f"no {kind.__name__}")


async def test_text_prompt(service: Service) -> None:
    service.answers("naïve")
    messages = await generate(service, text="say", model="tiny")
    assert "".join(message.text for message in messages) == "naïve"
    assert [token for message in messages for token in message.tokens] == service.generator.script(None)
    last = messages[-1]
    assert [message.finish for message in messages[:-1]] == [pb.GenerateResponse.FINISH_UNSPECIFIED] * (
        len(messages) - 1
    )
    assert last.finish == pb.GenerateResponse.FINISH_STOP
    assert last.stop_token == service.model.tokenizer.token_id("<|end|>")
    prompt = service.model.tokenizer.encode("say")
    assert last.usage == pb.Usage(prompt_tokens=len(prompt), completion_tokens=len(messages), cached_tokens=3)
    timing = last.timing
    parts_s = timing.queue_s + timing.admit_s + timing.prefill_s + timing.deliver_s
    assert (timing.prefill_worker, timing.transfer_s) == ("p0", 0.004)
    assert timing.ttft_s == pytest.approx(parts_s) and timing.ttft_s >= 0.0006
    assert service.generator.calls[0].tokens == prompt


async def test_timing_in_trailing_metadata(service: Service) -> None:
    call = service.stub.Generate(pb.GenerateRequest(text="hi", n=2))
    async for _ in call:
        pass
    trailing = dict(await call.trailing_metadata())
    assert (trailing["x-baton-transfer-ms"], trailing["x-baton-decode-worker"]) == ("4.000", "d0")
    parts_ms = [float(trailing[f"x-baton-{part}-ms"]) for part in ("queue", "admit", "prefill", "deliver")]
    assert float(trailing["x-baton-ttft-ms"]) == pytest.approx(sum(parts_ms), abs=0.003)
    assert trailing["x-baton-cached-tokens"] == "3"


async def test_token_ids_and_chat(service: Service) -> None:
    await generate(service, tokens=pb.TokenIds(ids=[5, 6, 7]))
    await generate(service, chat=CHAT)
    by_ids, by_chat = service.generator.calls
    assert (list(by_ids.tokens), by_ids.sampling.max_tokens) == ([5, 6, 7], 16)
    rendered = "<|begin|><|role|>user\nhi<|end|><|role|>assistant\n"
    assert by_chat.tokens == service.model.tokenizer.encode(rendered, add_special_tokens=False)
    assert by_chat.sampling.max_tokens == service.model.max_model_len - len(by_chat.tokens)


async def test_every_sampling_field(service: Service) -> None:
    service.answers("abc")
    params = pb.SamplingParams(
        max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.9, top_k=7, min_p=0.01, repetition_penalty=1.2,
        presence_penalty=0.1, frequency_penalty=0.2, logit_bias={5: -3.0}, seed=-1, stop=["zz"], stop_token_ids=[9],
        ignore_eos=True, logprobs=1, prompt_logprobs=0,
    )  # fmt: skip
    messages = await generate(service, text="hi", sampling=params, n=2, request_id="mine", priority=-2)
    first, second = service.generator.calls
    sampling = first.sampling
    assert (first.request_id, first.priority, first.timeout_s) == ("mine-0", -2, 600.0)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (9, 2, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (7, 0.01, 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0.1, 0.2, ((5, -3.0),))
    assert (sampling.seed, sampling.stop_token_ids) == (2**64 - 1, (9,))
    assert (sampling.num_logprobs, sampling.num_prompt_logprobs) == (1, 0)
    assert second.sampling.seed != sampling.seed
    assert {message.index for message in messages} == {0, 1}
    mine = [message for message in messages if message.index == 0]
    assert len(mine[0].prompt_logprobs) == len(first.tokens) - 1
    assert mine[0].logprobs[0].bytes == b"a" and mine[0].logprobs[0].top[0].logprob == 0.0


async def test_a_stop_string(service: Service) -> None:
    service.answers("one STOP two")
    messages = await generate(service, text="hi", sampling=pb.SamplingParams(stop=["STOP"]))
    assert "".join(message.text for message in messages) == "one "
    assert (messages[-1].finish, messages[-1].stop_text) == (pb.GenerateResponse.FINISH_STOP, "STOP")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, INVALID, "prompt"),
        ({"text": "hi", "model": "other"}, grpc.StatusCode.NOT_FOUND, "model"),
        ({"tokens": pb.TokenIds()}, INVALID, "prompt"),
        ({"tokens": pb.TokenIds(ids=[-1])}, INVALID, "prompt"),
        ({"tokens": pb.TokenIds(ids=[VOCAB_SIZE])}, INVALID, "prompt"),
        ({"chat": pb.Chat()}, INVALID, "messages"),
        ({"text": "hi", "n": 9}, INVALID, "n"),
        ({"text": "hi", "sampling": pb.SamplingParams(max_tokens=0)}, INVALID, "max_tokens"),
        ({"text": "hi", "sampling": pb.SamplingParams(max_tokens=MAX_MODEL_LEN)}, INVALID, "max_tokens"),
        ({"text": "hi", "sampling": pb.SamplingParams(temperature=float("nan"))}, INVALID, "temperature"),
        ({"text": "hi", "sampling": pb.SamplingParams(logprobs=21)}, INVALID, "logprobs"),
        ({"text": "hi", "sampling": pb.SamplingParams(stop=[""])}, INVALID, "stop"),
        ({"text": "hi", "sampling": pb.SamplingParams(logit_bias={-1: 1.0})}, INVALID, "logit_bias"),
    ],
)
async def test_bad_requests_name_the_field(service: Service, fields: Any, code: grpc.StatusCode, param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(service, **fields)
    assert caught.value.code() is code
    assert details(caught.value, error_details_pb2.BadRequest).field_violations[0].field == param
    assert service.generator.calls == []


async def test_overload_says_when_to_come_back(service: Service) -> None:
    service.generator.error = Overloaded("too many requests wait", retry_after_s=1.5)
    with pytest.raises(grpc.aio.AioRpcError, match="too many requests wait") as caught:
        await generate(service, text="hi")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = details(caught.value, error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 500_000_000)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no worker"), grpc.StatusCode.UNAVAILABLE),
        (DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_an_error_in_a_stream_ends_it(service: Service, error: Exception, code: grpc.StatusCode) -> None:
    service.answers("abcdef")
    service.generator.pause_after, service.generator.error = 2, error
    seen = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in service.stub.Generate(pb.GenerateRequest(text="hi")):
            seen += message.text
    assert (caught.value.code(), seen) == (code, "ab")


async def test_the_call_s_deadline_is_the_request_s(service: Service) -> None:
    await generate(service, text="hi")
    call = service.stub.Generate(pb.GenerateRequest(text="hi"), timeout=30)
    async for _ in call:
        pass
    assert 0 < service.generator.calls[1].timeout_s < 31  # it travels in steps of a tenth


async def test_a_deadline_that_passes_frees_everything(service: Service) -> None:
    service.generator.pause_after = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.Generate(pb.GenerateRequest(text="hi", n=2), timeout=0.5):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await service.generator.idle.wait()


async def test_cancelling_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after = 2
    call = service.stub.Generate(pb.GenerateRequest(text="hi", n=3))
    await call.read()
    await service.generator.paused.wait()
    assert service.generator.running == 3
    call.cancel()
    await service.generator.idle.wait()


async def test_a_reader_that_never_reads_is_freed_when_it_leaves(service: Service) -> None:
    tokens = service.byte_tokens("x" * 3000)
    service.generator.script = lambda _: tokens
    service.generator.chunk = 100
    params = pb.SamplingParams(max_tokens=3000, logprobs=20)  # megabytes of answer, more than any window
    call = service.stub.Generate(pb.GenerateRequest(text="hi", sampling=params, n=8))
    await call.read()
    call.cancel()
    await service.generator.idle.wait()


async def test_prompts_over_four_megabytes(service: Service) -> None:
    ids = [VOCAB_SIZE - 1] * 1_500_000  # three bytes each
    assert pb.GenerateRequest(tokens=pb.TokenIds(ids=ids)).ByteSize() > 4 << 20
    messages = await generate(service, tokens=pb.TokenIds(ids=ids))
    assert messages[-1].usage.prompt_tokens == 1_500_000


async def test_messages_over_the_limit_are_refused(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(service, text="x" * (13 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await generate(service, text="hi")


async def test_tokenize(service: Service) -> None:
    encode = service.model.tokenizer.encode
    assert (await service.stub.Tokenize(pb.TokenizeRequest(text="the dog"))).ids == list(encode("the dog"))
    rendered = "<|begin|><|role|>user\nhi<|end|><|role|>assistant\n"
    answer = await service.stub.Tokenize(pb.TokenizeRequest(chat=CHAT, model="tiny"))
    assert answer.ids == list(encode(rendered, add_special_tokens=False))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Tokenize(pb.TokenizeRequest(text="a", model="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_list_models(service: Service) -> None:
    (card,) = (await service.stub.ListModels(pb.ListModelsRequest())).models
    assert (card.name, card.max_model_len, card.vocab_size) == ("tiny", MAX_MODEL_LEN, VOCAB_SIZE)


async def test_a_batch_s_slow_member_does_not_hold_up_the_others(service: Service) -> None:
    service.answers("ab")
    service.generator.pause_after = 1
    slow = asyncio.ensure_future(generate(service, text="slow"))
    await service.generator.paused.wait()
    service.generator.pause_after = None
    assert "".join(message.text for message in await generate(service, text="hi")) == "ab"
    service.generator.resume.set()
    assert "".join(message.text for message in await slow) == "ab"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"json_schema": '{"type": "object"}'}, GrammarKind.JSON_SCHEMA),
        ({"json_object": True}, GrammarKind.JSON_SCHEMA),
        ({"regex": "a+"}, GrammarKind.REGEX),
        ({"choice": pb.Choice(texts=["a", "b"])}, GrammarKind.LARK),
        ({"grammar": 'start: "a"'}, GrammarKind.LARK),
        ({"json_object": False}, None),
    ],
)
async def test_forms_reach_the_engine(service: Service, fields: dict[str, Any], kind: GrammarKind | None) -> None:
    service.answers("a")
    await generate(service, text="hi", n=2, sampling=pb.SamplingParams(**fields))
    grammars = [call.sampling.grammar for call in service.generator.calls]
    assert [grammar and grammar.kind for grammar in grammars] == [kind] * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"json_schema": '{"type": "strin"}'}, "structured_outputs"),
        ({"json_schema": "{"}, "structured_outputs"),
        ({"regex": "("}, "structured_outputs"),
        ({"regex": ""}, "structured_outputs"),
        ({"choice": pb.Choice()}, "structured_outputs"),
        ({"grammar": "start: nothing"}, "structured_outputs"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
async def test_bad_forms_are_refused_before_anything_runs(service: Service, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(service, text="hi", sampling=pb.SamplingParams(**fields))
    assert caught.value.code() is INVALID and not service.generator.calls
    assert details(caught.value, error_details_pb2.BadRequest).field_violations[0].field == param
