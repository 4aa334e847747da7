"""`baton drain WORKER`: its running requests move to other workers, then it ends."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import typer

from baton.admin_door import call_door, connect
from baton.status import DEFAULT_URL
from engine.core.errors import Unavailable

POLL_S = 0.1
_LATE_S = 5.0
"""After its own time a worker is gone for sure, unless it hangs."""


def drain(
    worker: Annotated[str, typer.Argument(help="Its id, as `baton status` shows it.")],
    timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds; what is left at the worker then goes on elsewhere.")
    ] = 60.0,
    url: Annotated[
        str, typer.Option(envvar="BATON_URL", help="The HTTP door of a service on this machine.")
    ] = DEFAULT_URL,
    admin: Annotated[
        str, typer.Option(envvar="BATON_ADMIN", help="The router's admin door, where --url will not do.")
    ] = "",
) -> None:
    """Take a worker out of service: no new work, what runs moves with its pages, then its process ends.

    Exit code 1 when it did not get empty in time.
    """
    with connect(url, admin) as door:
        wait_until_gone(door, worker, timeout, lambda line: print(line, flush=True))


def wait_until_gone(door: httpx.Client, worker: str, timeout_s: float, say: Callable[[str], None]) -> None:
    """Ask for the drain and say how it goes.

    Raises:
        NotFound: no such worker.
        Unavailable: the router cannot be reached, or the worker had requests left when its time was over.
    """
    call_door(door, "POST", "/admin/drain", {"worker": worker, "timeout_s": timeout_s})
    start_s, last, left = time.monotonic(), "", 0
    while True:
        entry = _find(door, worker)
        waited_s = time.monotonic() - start_s
        if entry is None or entry["state"] not in ("ready", "draining", "hung", "resting"):
            break
        left = entry["requests"]
        line = f"{worker}: {left} requests left" + (f"; {entry['detail']}" if entry["detail"] else "")
        if line != last:
            say(line)
            last = line
        if waited_s > timeout_s + _LATE_S:
            raise Unavailable(f"{worker} is still there after {waited_s:.0f} s, {entry['state']}: {entry['detail']}")
        time.sleep(POLL_S)
    if waited_s >= timeout_s and left:
        raise Unavailable(f"{worker} ended at its time with {left} requests left; they go on elsewhere: {last}")
    say(f"{worker} is empty and has ended, after {waited_s:.1f} s")


def _find(door: httpx.Client, worker: str) -> dict[str, Any] | None:
    workers: list[dict[str, Any]] = call_door(door, "GET", "/admin/workers")["workers"]
    return next((entry for entry in workers if entry["id"] == worker), None)
