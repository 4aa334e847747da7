"""`baton status`: the workers of a running service and how busy they are."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton.admin_door import call_door, connect, first_line, routers_of
from baton.keys import KEY_VARIABLE, own_key
from baton.tls import own_verify
from baton.wire import key_metadata
from engine.core.errors import Unauthenticated, Unavailable

DEFAULT_URL = "http://localhost:8000"
_TIMEOUT_S = 10.0


def status(
    url: Annotated[str, typer.Option(envvar="BATON_URL", help="Of the HTTP door.")] = DEFAULT_URL,
    pages: Annotated[bool, typer.Option("--pages", help="Where every page is, and for how long.")] = False,
    prefixes: Annotated[
        bool, typer.Option("--prefixes", help="Which prefixes prompts share and which workers hold them.")
    ] = False,
    admin: Annotated[
        str, typer.Option(envvar="BATON_ADMIN", help="For --prefixes: the admin door, where --url will not do.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what the service says, as JSON.")] = False,
) -> None:
    """Show the service's workers. Exit code 1 when it is not ready."""
    if prefixes:
        with connect(url, admin) as door:
            report = call_door(door, "GET", "/admin/prefixes")
        if as_json:
            print(json.dumps(report, indent=2))
        else:
            show_prefixes(report, Console())
        return
    body = fetch_status(url)
    if as_json:
        print(json.dumps(body, indent=2))
    elif pages:
        show_pages(body, Console())
    else:
        show(body, Console())
        for line in router_lines(routers_of(url)):
            print(line)
    if not body["ready"]:
        raise typer.Exit(1)


def fetch_status(url: str) -> dict[str, Any]:
    """The service's /status. Raises Unavailable, Unauthenticated."""
    try:
        headers = dict(key_metadata(own_key()))
        response = httpx.get(f"{url.rstrip('/')}/status", headers=headers, timeout=_TIMEOUT_S, verify=own_verify())
        if response.status_code in (401, 403):
            raise Unauthenticated(f"/status needs an operator's key in {KEY_VARIABLE}")
        body: dict[str, Any] = response.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Unavailable(f"cannot read the status of {url}: {first_line(error)}") from error
    return body


def router_lines(urls: Sequence[str]) -> Iterator[str]:
    """What each router of a service says of itself, when there are several: they share its workers and nothing else."""
    for url in urls if len(urls) > 1 else ():
        try:
            body = fetch_status(url)
        except Unavailable as error:
            yield f"router {url}: {error.message}"
            continue
        state = "ready" if body["ready"] else f"not ready: {body['detail']}"
        yield f"router {url}: {state}; {body['running_requests']} requests run, {body['queued_requests']} wait"


def _by_id(body: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(body["workers"], key=lambda worker: str(worker["id"]))


def show(body: dict[str, Any], console: Console) -> None:
    """A headline and a row a worker."""
    headline = "ready" if body["ready"] else f"not ready: {body['detail']}"
    console.print(f"{headline}; {body['running_requests']} requests run, {body['queued_requests']} wait")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("worker", "roles", "state", "rows", "waiting", "pages free", "step ms", "address"):
        table.add_column(name, overflow="fold", no_wrap=name != "state")
    for worker in _by_id(body):
        load = worker["load"]
        state = f"{worker['state']}: {worker['detail']}" if worker["detail"] else worker["state"]
        busy = ["-"] * 4
        if load is not None:
            free = f"{load['free_pages']}/{worker['num_pages']}"
            busy = [str(load["running_rows"]), str(load["queued_requests"]), free, f"{load['step_ms']:.1f}"]
        table.add_row(worker["id"], ", ".join(worker["roles"]), state, *busy, worker["address"])
    console.print(table)


def show_prefixes(body: dict[str, Any], console: Console) -> None:
    """A row a worker: what the router knows of its cache. Then a row a prefix: what it is, and who holds it."""
    tiers = list(dict.fromkeys(tier for worker in body["workers"] for tier in worker["tokens"]))
    table = Table(title=f"{body['pages']} pages in the index", box=None, padding=(0, 1, 0, 0))
    for name in ("worker", "events from", "view", *(f"{tier} tokens" for tier in tiers)):
        table.add_column(name, overflow="fold")
    for worker in _by_id(body):
        view = "not synced" if not worker["synced"] else {False: "being renewed", True: "exact", None: "partial"}
        state = view if isinstance(view, str) else view[worker["agrees"]]
        table.add_row(worker["id"], worker["source"], state, *(str(worker["tokens"].get(tier, 0)) for tier in tiers))
    console.print(table)
    shared = Table(title="prefixes of recent prompts", box=None, padding=(0, 1, 0, 0))
    for name, justify in (("tokens", "right"), ("uses", "right"), ("held by (tokens)", "left"), ("begins", "left")):
        shared.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for prefix in body["prefixes"]:
        held = ", ".join(f"{worker} ({tokens})" for worker, tokens in prefix["holders"].items()) or "nobody"
        shared.add_row(str(prefix["tokens"]), str(prefix["uses"]), held, Text(repr(prefix["begins"])[:40]))
    console.print(shared)


def show_pages(body: dict[str, Any], console: Console) -> None:
    """A row a worker: pages by state, with the age of the oldest where somebody holds them, and their sum."""
    table = Table(title="pages by state (age of the oldest)", box=None, padding=(0, 1, 0, 0))
    states: list[str] = []
    for worker in body["workers"]:
        states += [state for state in (worker["load"] or {}).get("pages_by_state", {}) if state not in states]
    table.add_column("worker", overflow="fold", no_wrap=True)
    for name in (*states, "sum", "of"):
        table.add_column(name, justify="right", overflow="fold")
    for worker in _by_id(body):
        load = worker["load"]
        if load is None:
            table.add_row(worker["id"], *["-"] * (len(states) + 1), str(worker["num_pages"]))
            continue
        counts, ages = load["pages_by_state"], load["oldest_page_s"]
        cells = [str(counts.get(state, 0)) + (f" ({ages[state]:.1f} s)" if state in ages else "") for state in states]
        table.add_row(worker["id"], *cells, str(sum(counts.values())), str(worker["num_pages"]))
    console.print(table)
