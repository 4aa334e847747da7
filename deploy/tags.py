"""What a process of a fleet says of itself to a controller that did not start it."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.fleet.adopt import Stage


@dataclass(frozen=True, slots=True)
class Tag:
    """What it was started as. The process keeps it and makes nothing of it."""

    pool: str
    version: str
    """Of what it was started from; see deploy.fleet.recipes."""
    model: str
    """Hash of its model; see deploy.fleet.recipes.ModelFacts."""
    resources: Mapping[str, float]
    """What was set aside for it."""


@dataclass(frozen=True, slots=True)
class Description:
    """What it is now."""

    tag: Tag
    stage: Stage
    info: Any
    """WorkerInfo or Endpoints once it works, else None."""
    node: str
    """Ray's id of its node."""
    proof: bytes
    """See `prove`; of no key at all while nothing was started."""


def prove(cluster_key: bytes, nonce: bytes) -> bytes:
    """That one knows the cluster key, without a word of it."""
    return hmac.digest(cluster_key, b"baton-adopt" + nonce, "sha256")
