"""The processes of a fleet that are there already, by Ray's names and by their own word."""

import asyncio
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from deploy.fleet.adopt import Seen, Stage
from deploy.launcher import RayProcess
from deploy.tags import Description, prove
from engine.core.errors import InvalidRequest, Unavailable
from engine.server.config import CLUSTER_KEY_VARIABLE

ANSWER_S = 15.0
"""One that imports what it runs answers after that; who is slower serves nobody."""


@dataclass(frozen=True, slots=True)
class Found:
    """One of them."""

    name: str
    actor: Any
    said: Description | None
    """None: it does not answer."""

    @property
    def seen(self) -> Seen:
        """As `adopt` takes it."""
        if self.said is None:
            return Seen(self.name, "", "", Stage.ENDED)
        return Seen(self.name, self.said.tag.pool, self.said.tag.version, self.said.stage)


def names(namespace: str) -> list[str]:
    """Of actors that are there."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(str(actor["name"]) for actor in actors if actor["namespace"] == namespace)


async def find(namespace: str, nonce: bytes = b"") -> list[Found]:
    """All of them. Whether they know the cluster key is not asked."""
    return list(await asyncio.gather(*(_ask(namespace, name, nonce) for name in names(namespace))))


async def find_own(namespace: str, cluster_key: bytes) -> list[Found]:
    """All of them. Raises InvalidRequest when one has another cluster key."""
    nonce = secrets.token_bytes(16)
    every = await find(namespace, nonce)
    for found in every:
        said = found.said
        if said is None or said.stage is Stage.EMPTY or hmac.compare_digest(said.proof, prove(cluster_key, nonce)):
            continue
        raise InvalidRequest(
            f"a service of this name runs, and {found.name} of it has another cluster key: give that in "
            f"{CLUSTER_KEY_VARIABLE}, or end the service with `baton down`"
        )
    return every


async def _ask(namespace: str, name: str, nonce: bytes) -> Found:
    import ray

    try:
        actor = ray.get_actor(name, namespace=namespace)
    except ValueError:
        return Found(name, None, None)  # it has just ended
    process = process_of(actor)
    try:
        async with asyncio.timeout(ANSWER_S):
            return Found(name, actor, await process.call("describe", nonce))
    except (TimeoutError, Unavailable):
        return Found(name, actor, None)


def process_of(actor: Any) -> RayProcess:
    """One that others started."""
    process = RayProcess(object, tuple)
    process.adopt(actor)
    return process
