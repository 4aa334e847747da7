"""`baton up` and what is done to a running fleet: fleet, scale, role, update, down."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from baton.admin_door import call_door, connect_control, own_fleet
from baton.status import DEFAULT_URL
from deploy.cluster import EMBEDDED
from engine.core.errors import InvalidRequest, NotFound, Unavailable

POLL_S = 0.1
PATIENCE_S = 60.0
"""For one look at a fleet that is changing: where workers load, all processes are slow to answer."""

Url = Annotated[str, typer.Option(envvar="BATON_URL", help="The HTTP door of a fleet that was started here.")]
Control = Annotated[
    str, typer.Option(envvar="BATON_CONTROL", help="The control door, where --url will not do; see `baton up`.")
]
Timeout = Annotated[float, typer.Option(min=0.0, help="Seconds to wait for the end of it.")]
ConfigFile = Annotated[Path, typer.Argument(help="See docs/operations.md for its keys.")]


def up(
    config: ConfigFile,
    address: Annotated[
        str, typer.Option(help="Ray's address; auto: of the cluster here; local: one of this service's own.")
    ] = EMBEDDED,
    leave_running: Annotated[
        bool, typer.Option(help="Ctrl-C and SIGTERM end this process alone; `baton up` takes the service over again.")
    ] = False,
) -> None:
    """Serve a model with pools of workers on a Ray cluster, until Ctrl-C, SIGTERM or `baton down`.

    A service of that name that has lost its controller is taken over as it runs, with its cluster key in
    BATON_CLUSTER_KEY.
    """
    from deploy.fleet.config import read_config

    parsed = read_config(config)
    from deploy.fleet.run import run  # a second that a wrong file need not wait

    code = run(parsed, ray_address=address, leave_running=leave_running)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # as in `baton serve`


def fleet(
    url: Url = DEFAULT_URL, control: Control = "", as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """Show what is wanted and what is there, place by place. Exit code 1 when the two differ."""
    with connect_control(url, control) as door:
        body = call_door(door, "GET", "/fleet")
    if as_json:
        typer.echo(json.dumps(body, indent=2))
    else:
        show(body, Console())
    if any(pool["ready"] != pool["wanted"] for pool in body["pools"].values()):
        raise typer.Exit(1)


def scale(
    counts: Annotated[list[str], typer.Argument(metavar="POOL=NUMBER...")],
    url: Url = DEFAULT_URL,
    control: Control = "",
    timeout: Timeout = 600.0,
) -> None:
    """Have so many workers in each pool. Who leaves drains first.

    Exit code 1 when it did not come to that: one line says what lacks. What was asked for stays wanted.
    """
    wanted = _counts(counts)
    with connect_control(url, control) as door:
        call_door(door, "POST", "/fleet/scale", {"counts": wanted})
        _follow(door, timeout, lambda body: _is_settled(body, wanted))


def role(
    worker: Annotated[str, typer.Argument(help="Its id, as `baton fleet` shows it.")],
    role: Annotated[str, typer.Argument(metavar="prefill|decode")],
    url: Url = DEFAULT_URL,
    control: Control = "",
    timeout: Timeout = 600.0,
) -> None:
    """Give a worker the other role: it drains, and goes on as a new incarnation with the model that it has loaded."""
    with connect_control(url, control) as door:
        call_door(door, "POST", "/fleet/role", {"worker": worker, "role": role})
        _follow(door, timeout, lambda body: _is_settled(body, body["pools"]))


def update(config: ConfigFile, url: Url = DEFAULT_URL, control: Control = "", timeout: Timeout = 3600.0) -> None:
    """Replace workers by those of CONFIG, one at a time: a new one gets ready, then an old one drains."""
    from deploy.fleet.config import read_config

    values = read_config(config).model_dump(mode="json", exclude_unset=True)
    with connect_control(url, control) as door:
        call_door(door, "POST", "/fleet/update", {"config": values})
        _follow(door, timeout, lambda body: _is_settled(body, body["pools"]))


def down(
    url: Url = DEFAULT_URL,
    control: Control = "",
    drain: Annotated[float | None, typer.Option(min=0.0, help="Seconds for answers under way; as in CONFIG.")] = None,
    timeout: Timeout = 120.0,
    name: Annotated[str, typer.Option(help="Of a service that has no controller; --address is its cluster's.")] = "",
    address: Annotated[str, typer.Option(help="Ray's address, with --name.")] = "auto",
) -> None:
    """End the service: routers let nobody new in and finish, then every process ends. Needs no controller."""
    if not name:
        found = None if control else own_fleet(url)
        with connect_control(url, control) as door:
            try:
                call_door(door, "POST", "/fleet/down", {"drain_s": drain})
            except Unavailable:
                if found is None:
                    raise
                name, address = found
            else:
                _wait_for_end(door, timeout)
                return
    from deploy.fleet.end import end

    end(name, address, drain)


def _wait_for_end(door: httpx.Client, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        try:
            call_door(door, "GET", "/fleet")
        except Unavailable:
            return
        time.sleep(POLL_S)
    raise Unavailable(f"the service is still there after {timeout_s:g} s")


def _counts(words: list[str]) -> dict[str, int]:
    counts = {}
    for word in words:
        pool, equals, number = word.partition("=")
        if not (pool and equals and number.isdigit()):
            raise InvalidRequest(f"{word!r} is not POOL=NUMBER")
        counts[pool] = int(number)
    return counts


def _is_settled(body: dict[str, Any], pools: "dict[str, int] | dict[str, Any]") -> bool:
    """Whether those pools are as wanted: all READY, of one version, nobody on the way or out."""
    for name in pools:
        pool = body["pools"].get(name)
        if pool is None:
            raise NotFound(f"there is no pool {name!r} any more")
        mine = [place for place in body["places"] if place["pool"] == name]
        if len(mine) != pool["wanted"]:
            return False
        if any(place["phase"] != "ready" or place["version"] != pool["version"] for place in mine):
            return False
    return True


def _follow(door: httpx.Client, timeout_s: float, is_done: Callable[[dict[str, Any]], bool]) -> None:
    """Say how it goes until `is_done`. Raises Unavailable when it cannot go on, or not in time."""
    end_s, last = time.monotonic() + timeout_s, ""
    while True:
        body = call_door(door, "GET", "/fleet", timeout_s=PATIENCE_S)
        line = _line(body)
        if line != last:
            typer.echo(line)
            last = line
        if is_done(body):
            return
        for place in body["places"]:
            if place["phase"] == "given up":
                raise Unavailable(f"{place['id']} was given up after {place['deaths']} deaths: {place['detail']}")
            if place["phase"] == "placing" and place["lacks_s"] >= body["place_s"]:
                raise Unavailable(f"{place['id']} fits on no node: {place['detail']}; it is still wanted")
        if time.monotonic() > end_s:
            raise Unavailable(f"not done after {timeout_s:g} s: {line}")
        time.sleep(POLL_S)


def _line(body: dict[str, Any]) -> str:
    pools = ", ".join(f"{name} {pool['ready']}/{pool['wanted']}" for name, pool in body["pools"].items())
    rest = ", ".join(f"{place['id']} {place['phase']}" for place in body["places"] if place["phase"] != "ready")
    return f"ready: {pools}" + (f"; {rest}" if rest else "")


def show(body: dict[str, Any], console: Console) -> None:
    """A row a place."""
    console.print(f"{body['name']}: {_line(body).partition(';')[0]}")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("place", "pool", "phase", "version", "node", "address", "deaths"):
        table.add_column(name, overflow="fold", no_wrap=True)
    for place in body["places"]:
        table.add_row(
            place["id"],
            place["pool"],
            place["phase"],
            place["version"],
            place["node"],
            place["address"],
            str(place["deaths"]),
        )
    console.print(table)
    for place in body["places"]:
        if place["detail"]:
            console.print(f"{place['id']}: {place['detail']}", markup=False)
