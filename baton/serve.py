"""`baton serve`: a whole service on this machine, Ray included."""

from typing import Any

import typer

from deploy.cluster import EMBEDDED
from deploy.config import as_command


def _run(values: dict[str, Any]) -> None:
    """Serve a model: prefill workers, decode workers and a router, until Ctrl-C."""
    from deploy.service import run  # A second that `baton --help` need not wait.

    raise typer.Exit(run(values, ray_address=EMBEDDED))


serve = as_command("serve", _run)
