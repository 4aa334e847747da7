"""The same service on an existing Ray cluster: `ray job submit --working-dir . -- python -m deploy.job --model ...`.

The router listens on the node that Ray puts it on, so --host should be 0.0.0.0 to be reached from other machines. The
cluster's python must have the project's packages; workers find the code in the job's working directory.
"""

from typing import Any

import typer

from deploy.config import FLAGS, Flag, as_command
from deploy.service import run

ADDRESS = Flag("address", str, "auto", "Ray's address; auto is the cluster that the job runs on.")


def _run(values: dict[str, Any]) -> None:
    """Serve a model on a running Ray cluster, until the job is stopped."""
    raise typer.Exit(run(values, ray_address=values["address"]))


if __name__ == "__main__":
    typer.run(as_command("job", _run, (*FLAGS, ADDRESS)))
