"""`baton chat`: a conversation in the terminal."""

import sys
from contextlib import closing
from typing import Annotated

import typer

from baton.client import DEFAULT_TARGET, Client
from baton.keys import own_key
from baton.results import Message, SamplingOptions, sampling_options
from baton.tls import own_channel
from engine.core.errors import BatonError

HELP = "/new starts over, /exit (or Ctrl-D) leaves, Ctrl-C cuts an answer short"


def chat(
    target: Annotated[str, typer.Option(envvar="BATON_TARGET", help="host:port of the gRPC door.")] = DEFAULT_TARGET,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="New tokens in an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
) -> None:
    """Talk with the served model; answers stream."""
    options = sampling_options(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with Client(target, api_key=own_key(), credentials=own_channel()) as client:
        print(f"{client.models()[0].name}: {HELP}", file=sys.stderr)
        _converse(client, system, options)


def _converse(client: Client, system: str, options: SamplingOptions) -> None:
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = opening.copy()
    while (line := _read()) != "/exit":
        if line == "/new":
            messages = opening.copy()
        elif line:
            turn = [*messages, {"role": "user", "content": line}]
            try:
                answer = _answer(client, turn, options)
            except BatonError as error:  # the conversation goes on without this turn
                print(f"baton: {error.message}", file=sys.stderr)
                continue
            messages = [*turn, {"role": "assistant", "content": answer}]


def _read() -> str:
    """One line of the user's; leaving is a line too."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return "/exit"


def _answer(client: Client, messages: list[Message], options: SamplingOptions) -> str:
    """Print the answer as it comes; what had come when the user cut it short is the answer."""
    text = ""
    try:
        with closing(client.stream(messages, **options)) as chunks:
            for chunk in chunks:
                text += chunk.text
                print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    return text
