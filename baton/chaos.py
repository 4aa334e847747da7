"""`baton chaos`: what goes wrong when everything does. In virtual time, or with real processes on this machine."""

from typing import Annotated

import typer

from engine.core.errors import InvalidRequest

TRANSPORTS = ("auto", "nixl", "grpc")

MAX_JOBS = 64


def chaos(
    virtual: Annotated[
        bool | None,
        typer.Option("--virtual/--real", help="Production logic in virtual time, or real processes on this machine."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --virtual: how many.")] = 200,
    first_seed: Annotated[int, typer.Option(min=0, help="With --seeds 1 it replays that seed exactly.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, max=MAX_JOBS, help="With --virtual: processes; 0 is one a core.")] = 0,
    seconds: Annotated[float, typer.Option(min=1, help="With --real: of load and faults, without the start.")] = 60.0,
    transport: Annotated[str, typer.Option(help=f"With --real: {', '.join(TRANSPORTS)}.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    """Break workers, sessions and transfers, and check every answer. Exit code 1 when anything was wrong."""
    if virtual is None:
        raise InvalidRequest("say either --virtual or --real")
    if not virtual:
        if transport not in TRANSPORTS:
            raise InvalidRequest(f"must be one of {', '.join(TRANSPORTS)}, not {transport!r}", param="transport")
        from deploy.chaos import run  # Ray and torch: not for --help

        raise typer.Exit(run(seconds=seconds, transport=transport, first_seed=first_seed, as_json=as_json))
    from baton.virtual import run_virtual

    raise typer.Exit(run_virtual(range(first_seed, first_seed + seeds), jobs, as_json))
