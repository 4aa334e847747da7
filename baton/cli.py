"""The `baton` command. Each failure is one line on stderr and an exit code: 2 for the caller's mistake, else 1."""

import os
import sys
from typing import Annotated

import typer

from baton.chaos import chaos
from baton.chat import chat
from baton.client import DEFAULT_TARGET, Client
from baton.doctor import doctor
from baton.drain import drain
from baton.fleet import down, fleet, role, scale, up, update
from baton.keys import keys, own_key
from baton.plan import plan
from baton.results import sampling_options
from baton.serve import serve
from baton.status import status
from baton.tls import own_channel, tls_options
from engine.core.errors import BatonError, Code

MISTAKES = frozenset((Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.UNAUTHENTICATED))

app = typer.Typer(name="baton", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.callback()(tls_options)
app.command()(serve)
for command in (up, fleet, scale, role, update, down):
    app.command()(command)
app.command()(chat)
app.command()(status)
app.command()(doctor)
app.command()(drain)
app.command()(plan)
app.command()(chaos)
app.add_typer(keys, name="keys")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from standard input.")],
    target: Annotated[str, typer.Option(envvar="BATON_TARGET", help="host:port of the gRPC door.")] = DEFAULT_TARGET,
    max_tokens: Annotated[int | None, typer.Option(help="New tokens at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that make up this share.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")] = None,
) -> None:
    """Continue a text and print it as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options = sampling_options(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    with Client(target, api_key=own_key(), credentials=own_channel()) as client:
        for chunk in client.stream(text, **options):
            print(chunk.text, end="", flush=True)
    print()


def main() -> None:
    """Entry point."""
    # Of the processes that a service starts: else each handshake that fails, a port scan's included, is a line of
    # gRPC's own in the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        app()
    except BatonError as error:
        print(f"baton: {error.message}", file=sys.stderr)
        sys.exit(2 if error.code in MISTAKES else 1)
