"""The two public doors as the campaign's clients use them."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import aiohttp

from baton.client import AsyncClient
from deploy.chaos.cases import Case, Seen
from engine.core.errors import BatonError, Overloaded, Unavailable

_DATA = b"data:"


class Door(Protocol):
    """One way to ask."""

    name: str

    def ask(self, case: Case, answers: list[Seen], timeout_s: float) -> AsyncGenerator[int, None]:
        """Fill `answers` as they come; yields how many tokens (or events) each part brought. Closing it is leaving.

        Raises BatonError: Overloaded for a refusal that says to come back, anything else for a failure.
        """


class GrpcDoor:
    """baton.AsyncClient."""

    name = "grpc"

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ask(self, case: Case, answers: list[Seen], timeout_s: float) -> AsyncGenerator[int, None]:
        """See Door."""
        stream = self._client.stream(case.prompt, n=case.n, timeout_s=timeout_s, **case.options)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                seen = answers[chunk.index]
                seen.text += chunk.text
                seen.tokens += chunk.tokens
                seen.logprobs += [row.logprob for row in chunk.logprobs]
                seen.finish = chunk.finish or seen.finish
                yield len(chunk.tokens)


class HttpDoor:
    """POST /v1/completions with stream."""

    name = "http"

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url + "/v1/completions"
        self._model = model

    async def ask(self, case: Case, answers: list[Seen], timeout_s: float) -> AsyncGenerator[int, None]:
        """See Door."""
        body = {"model": self._model, "prompt": case.prompt, "n": case.n, "stream": True, "timeout_s": timeout_s}
        try:
            async with self._session.post(self._url, json=body | case.options) as response:
                if response.status != 200:
                    await _refuse(response)
                async for line in response.content:
                    if line.startswith(_DATA) and line[len(_DATA) :].strip() != b"[DONE]":
                        yield _read(json.loads(line[len(_DATA) :]), answers)
        except aiohttp.ClientError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error


async def _refuse(response: aiohttp.ClientResponse) -> None:
    message = f"HTTP {response.status}: {(await response.text())[:200]}"
    raise Overloaded(message) if response.status == 429 else BatonError(message)


def _read(event: dict[str, object], answers: list[Seen]) -> int:
    if error := event.get("error"):
        raise BatonError(f"error event: {error}")
    choices = event["choices"]
    assert isinstance(choices, list)
    for choice in choices:
        seen = answers[choice["index"]]
        seen.text += choice["text"]
        if choice["logprobs"] is not None:
            seen.logprobs += choice["logprobs"]["token_logprobs"]
        seen.finish = choice["finish_reason"] or seen.finish
    return len(choices)
