"""How commands on the same machine find the admin door of a service that this user started: a file for each HTTP port.

Only the user can read it, for the key in it opens the door. It goes when the service ends.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.core.errors import NotFound


@dataclass(frozen=True, slots=True)
class AdminDoor:
    """Where a router's admin door is, and its key (the cluster key), which also opens the control door of a fleet."""

    url: str
    key: str = field(repr=False)
    control: str = ""
    """Of `baton up`."""
    routers: tuple[str, ...] = ()
    """Base URLs of all routers of the service, this one's too."""
    fleet: str = ""
    """Name of the fleet, for a command that has to do without its controller."""
    ray: str = ""
    """Address of its Ray cluster, if that is not the service's own."""


def _path(http_port: int) -> Path:
    return Path(tempfile.gettempdir()) / f"baton-{os.getuid()}" / f"{http_port}.json"


def publish(http_port: int, door: AdminDoor) -> None:
    """Say where the door of the service at `http_port` is. Raises NotFound when the folder is somebody else's."""
    path = _path(http_port)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    owner = path.parent.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise NotFound(f"{path.parent} is open to other users")
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(door), file)


def withdraw(http_port: int) -> None:
    """The service has ended. Idempotent."""
    _path(http_port).unlink(missing_ok=True)


def find(http_port: int) -> AdminDoor:
    """The door of the service at `http_port` of this machine. Raises NotFound."""
    path = _path(http_port)
    try:
        return AdminDoor(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise NotFound(
            f"no service of this user has HTTP on port {http_port} of this machine; "
            "for another one give --admin and the environment variable BATON_CLUSTER_KEY"
        ) from None
