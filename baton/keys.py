"""`baton keys`: keys for a service's clients, and this command line's own."""

import os
import secrets
from typing import Annotated

import typer

from router.gateway.tenants import KEY_ID_BYTES, SECRET_BYTES, make_key

KEY_VARIABLE = "BATON_API_KEY"

keys = typer.Typer(help=f"Keys of clients. Commands that call a service send the one in {KEY_VARIABLE}.")


def own_key() -> str:
    """The key that this command line calls services with; empty without one."""
    return os.environ.get(KEY_VARIABLE, "")


@keys.callback()
def _group() -> None:
    """Keys of a service's clients."""


@keys.command()
def new(
    tenant: Annotated[str, typer.Argument(help="Whose key it will be.")],
    operator: Annotated[bool, typer.Option("--operator", help="It may read /status, too.")] = False,
) -> None:
    """Make a key: print it, this once, and the lines for the tenants' file, which holds only a hash of it."""
    key, kept = make_key(secrets.token_bytes(KEY_ID_BYTES), secrets.token_bytes(SECRET_BYTES))
    print(f"key for the client, not shown again: {key}")
    print("for the tenants' file:")
    print(f"[[tenants.{tenant}.keys]]")
    print(f'id = "{kept.id}"')
    print(f'sha256 = "{kept.sha256}"')
    if operator:
        print("operator = true")
