"""`baton serve`: a whole service on this machine, Ray included."""

import os
import sys
from typing import Any

from deploy.cluster import EMBEDDED
from deploy.config import as_command


def _run(values: dict[str, Any]) -> None:
    """Serve a model: prefill workers, decode workers and a router, until Ctrl-C."""
    from deploy.service import run  # A second that `baton --help` need not wait.

    code = run(values, ray_address=EMBEDDED)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # Everything has ended; taking Ray's modules apart would keep the terminal for two seconds more.


serve = as_command("serve", _run)
