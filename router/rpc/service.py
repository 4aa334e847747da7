"""baton.v1.Inference over the doors' shared request handling."""

from array import array
from contextlib import aclosing
from uuid import uuid4

import grpc
from grpc_status import rpc_status

from engine.core.errors import BatonError, InvalidRequest
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceServicer
from router.api import Generator
from router.doors.arrival import SLO_HEADER, slo_of, timing_entries
from router.doors.config import DoorConfig
from router.doors.gateway import Arrival, Gateway, Visit
from router.doors.prompts import check_model, tokens_of_buffer, tokens_of_chat, tokens_of_text
from router.doors.session import Ask, Choice, choices_of, fit_for_logs
from router.doors.structured import checked_grammar
from router.rpc.convert import buffer_of, messages_of, num_logprobs, response, sampling_fields
from router.rpc.errors import rpc_status_of
from router.text.model import ServedModel

DEFAULT_MAX_TOKENS = 16


def _request_id(given: str) -> str:
    if given and not fit_for_logs(given):
        raise InvalidRequest("request_id: 1 to 128 letters, digits and . _ : / - are fit for logs", param="request_id")
    return given or f"gen-{uuid4().hex}"


class InferenceService(InferenceServicer):
    """One served model. The call's deadline is the request's; a cancelled call frees what it holds."""

    def __init__(self, generator: Generator, model: ServedModel, config: DoorConfig, gateway: Gateway) -> None:
        self._generator = generator
        self._model = model
        self._config = config
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        """Stream the answers. Writes instead of yielding, so that a cancelled call ends here and nowhere later."""
        try:
            arrival = self._arrival(context)
            choices = await self._choices(request, context, arrival)
            request_id = choices[0].call.request_id.rpartition("-")[0]
            await self._stream(self._gateway.visit(arrival, request_id, choices), context)
        except BatonError as error:
            await context.abort_with_status(rpc_status.to_status(rpc_status_of(error)))

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TokenizeResponse:
        """Token ids as Generate would see them."""
        try:
            self._arrival(context)
            check_model(self._model, request.model or self._model.name)
            if request.WhichOneof("input") == "chat":
                tokens = await tokens_of_chat(self._model, messages_of(request.chat), check=False)
            else:
                tokens = await tokens_of_text(self._model, request.text, check=False)
        except BatonError as error:
            await context.abort_with_status(rpc_status.to_status(rpc_status_of(error)))
        return pb.TokenizeResponse(ids=tokens)

    async def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """The one served model."""
        try:
            self._arrival(context)
        except BatonError as error:
            await context.abort_with_status(rpc_status.to_status(rpc_status_of(error)))
        model = self._model
        card = pb.ModelCard(name=model.name, max_model_len=model.max_model_len, vocab_size=model.vocab_size)
        return pb.ListModelsResponse(models=[card])

    def _arrival(self, context: grpc.aio.ServicerContext) -> Arrival:
        """Who calls, and what the call's metadata say. Raises Unauthenticated."""
        sent = [(name, value) for name, value in context.invocation_metadata() or () if isinstance(value, str)]
        caller = self._gateway.caller(*(value for name, value in sent if name == "authorization"))
        given = dict(sent)
        trace = {name: given[name] for name in ("traceparent", "tracestate") if name in given}
        return Arrival(caller, self._gateway.clock(), slo_of(given.get(SLO_HEADER)), trace)

    async def _choices(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext, arrival: Arrival
    ) -> list[Choice]:
        check_model(self._model, request.model or self._model.name)
        is_chat = request.WhichOneof("prompt") == "chat"
        fields = sampling_fields(request.sampling, request.n)
        ask = Ask(
            request_id=_request_id(request.request_id),
            prompts=[await self._prompt(request)],
            fields=fields,
            default_max_tokens=None if is_chat else DEFAULT_MAX_TOKENS,
            starts_text=is_chat,
            timeout_s=context.time_remaining(),
            priority=request.priority,
            num_logprobs=num_logprobs(request.sampling, "logprobs"),
            num_prompt_logprobs=num_logprobs(request.sampling, "prompt_logprobs"),
            grammar=await checked_grammar(self._model, fields.grammar(), self._gateway.costly(arrival.caller)),
        )
        return choices_of(ask, self._model, self._config)

    async def _prompt(self, request: pb.GenerateRequest) -> "array[int]":
        match request.WhichOneof("prompt"):
            case "text":
                return await tokens_of_text(self._model, request.text)
            case "tokens":
                return tokens_of_buffer(self._model, buffer_of(request.tokens))
            case "chat":
                return await tokens_of_chat(self._model, messages_of(request.chat))
        raise InvalidRequest("one of text, tokens and chat is needed", param="prompt")

    async def _stream(self, visit: Visit, context: grpc.aio.ServicerContext) -> None:
        choices = visit.choices
        counts, cached = [0] * len(choices), [0] * len(choices)
        async with aclosing(visit.run(self._generator)) as events:
            async for index, delta in events:
                counts[index] += len(delta.tokens)
                cached[index] += delta.cached_tokens or 0
                message = response(index, delta)
                if delta.finish is not None:
                    message.usage.prompt_tokens = len(choices[index].call.tokens)
                    message.usage.completion_tokens = counts[index]
                    message.usage.cached_tokens = cached[index]
                    if index == 0 and delta.timing is not None:
                        hit = ("x-baton-cached-tokens", str(cached[0]))
                        context.set_trailing_metadata((hit, *timing_entries(delta.timing, whole=True)))
                await context.write(message)
