"""POST /v1/completions."""

import time
from array import array
from collections.abc import Sequence
from typing import cast

from fastapi import Request, Response

from router.doors.prompts import check_model, tokens_of_prompts
from router.doors.session import Answer, Ask, check_count, choices_of
from router.doors.structured import checked_grammar
from router.http.body import parse_body, read_bytes
from router.http.caller import caller_of
from router.http.logprobs import Json, joined, legacy_logprobs, legacy_token
from router.http.respond import ChunkEvents, Door, request_id_of, respond
from router.http.schema import CompletionRequest
from router.http.token_ids import cut_token_ids
from router.http.usage import UsageCount
from router.text.detokenizer import Detokenizer
from router.text.output import TextDelta, TokenText
from router.text.pieces import PieceTable

DEFAULT_MAX_TOKENS = 16


async def complete(request: Request, door: Door) -> Response:
    """Continue one prompt or each of a batch."""
    data, ids = cut_token_ids(await read_bytes(request))
    body = parse_body(data, CompletionRequest)
    check_model(door.model, body.model)
    prompts = _prompts(body) if ids is None else [ids]
    check_count(len(prompts), body.n or 1, door.config)
    tokens = await tokens_of_prompts(door.model, prompts)
    ask = Ask(
        request_id=request_id_of(request, "cmpl"),
        prompts=tokens,
        fields=body,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        starts_text=False,
        timeout_s=body.timeout_s,
        priority=body.priority or 0,
        num_logprobs=body.logprobs,
        num_prompt_logprobs=body.logprobs if body.echo else None,
        grammar=await checked_grammar(door.model, body.grammar(), door.gateway.costly(caller_of(request))),
    )
    choices = choices_of(ask, door.model, door.config)
    pieces = door.model.tokenizer.pieces
    echoes = [EchoedPrompt(*pair, pieces) for pair in zip(prompts, tokens, strict=True)] if body.echo else []
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    shape = CompletionShape(ask, body, echoes, null_usage=include_usage)
    streamed = ChunkEvents(shape, include_usage=include_usage) if body.stream else None
    return await respond(request, door, choices, shape.whole, streamed)


def _prompts(body: CompletionRequest) -> "list[str | list[int] | array[int]]":
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    # The schema has seen to it that a list is of one kind: a long prompt is not walked through again.
    if not prompt or isinstance(prompt[0], int):
        return [cast(list[int], prompt)]
    return cast("list[str | list[int] | array[int]]", prompt)


class EchoedPrompt:
    """A prompt that is shown before its answer."""

    def __init__(self, prompt: "str | list[int] | array[int]", tokens: "array[int]", pieces: PieceTable) -> None:
        self._tokens = tokens
        self._pieces = pieces
        detokenizer = Detokenizer(pieces, starts_text=True)
        self._texts = [detokenizer.push(token) for token in tokens]
        self.text = prompt if isinstance(prompt, str) else "".join(self._texts) + detokenizer.flush()

    def logprobs(self, rows: Sequence[TokenText]) -> Json:
        """Of the prompt's tokens; `rows` begin with the second one, the first has no probability."""
        offsets, offset = [], 0
        for text in self._texts:
            offsets.append(offset)
            offset += len(text)
        legacy = legacy_logprobs(rows, 0)
        return {
            "tokens": [legacy_token(self._pieces.spelled(token)) for token in self._tokens],
            "token_logprobs": [None, *legacy["token_logprobs"]],
            "top_logprobs": [None, *legacy["top_logprobs"]],
            "text_offset": offsets,
        }


class CompletionShape:
    """Bodies and events of one completion request."""

    def __init__(self, ask: Ask, body: CompletionRequest, echoes: Sequence[EchoedPrompt], *, null_usage: bool) -> None:
        """`null_usage`: each event says that its usage comes later."""
        self._head = {
            "id": ask.request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        self._copies = body.n or 1
        self._usage = UsageCount(ask.prompts, self._copies)
        self._tail = {"usage": None} if null_usage else {}
        self._echoes = echoes
        self._wants_logprobs = body.logprobs is not None
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The body of a response that is not streamed."""
        choices = [self._choice(index, answer.as_delta()) for index, answer in enumerate(answers)]
        return self._head | {"choices": choices, "usage": self._usage.body()}

    def chunk(self, index: int, delta: TextDelta) -> Json:
        """One event of a stream."""
        return self._head | {"choices": [self._choice(index, delta)]} | self._tail

    def usage_chunk(self) -> Json:
        """The event after the last delta."""
        return self._head | {"choices": [], "usage": self._usage.body()}

    def _choice(self, index: int, delta: TextDelta) -> Json:
        self._usage.add(index, len(delta.tokens), delta.cached_tokens)
        echo = self._echoes[index // self._copies] if self._echoes else None
        text, logprobs = delta.text, None
        if self._wants_logprobs:
            logprobs = legacy_logprobs(delta.logprobs, len(echo.text) if echo else 0)
        if echo and index not in self._begun:
            self._begun.add(index)
            text = echo.text + text
            if logprobs is not None:
                logprobs = joined([echo.logprobs(delta.prompt_logprobs), logprobs])
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": delta.finish}
