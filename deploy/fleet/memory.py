"""What Ray keeps of a fleet between two controllers: who controls it, and what was wanted last. No secrets.

The claim is a placement group that takes next to nothing of the controller's own node. Its name is given once, and Ray
takes it back when the process that made it ends, is killed, or its node is lost: so a claim lives exactly as long as
its controller, and one that merely hangs keeps it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.fleet.config import FleetConfig, config_from
from engine.core.errors import InvalidRequest

_CLAIM = "controller"
_SHARE = 1e-4
"""Of the resource that each node has one of; Ray's smallest amount."""


@dataclass(frozen=True, slots=True)
class Memo:
    """What the fleet should be."""

    given: dict[str, Any]
    """The content of the file that `baton up` was started with."""
    config: dict[str, Any]
    """What updates have made of that."""
    counts: dict[str, int]
    """And scaling, by pool."""

    def resumed(self) -> FleetConfig:
        """What was wanted last. Raises InvalidRequest."""
        return config_from(self.config)


class Memory:
    """Of one fleet, in Ray's own key-value store: it is there as long as the cluster is."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._given: dict[str, Any] = {}
        self._saved: Memo | None = None

    def claim(self) -> None:
        """Be the only controller from now on. Raises InvalidRequest when another one is."""
        import ray

        if self._is_claimed():
            raise InvalidRequest(f"{self._get('holder') or 'another process'} controls this service already")
        own = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == own)
        share = next(name for name in node["Resources"] if name.startswith("node:") and "internal" not in name)
        try:
            ray.util.placement_group([{share: _SHARE}], strategy="STRICT_PACK", name=_CLAIM)
        except ray.exceptions.RaySystemError as error:
            raise InvalidRequest("another process has just begun to control this service") from error
        self._put("holder", f"process {os.getpid()} at {node['NodeManagerAddress']}")

    def load(self) -> Memo | None:
        """What an earlier controller left."""
        text = self._get("memo")
        return Memo(**json.loads(text)) if text else None

    def begin(self, given: FleetConfig) -> None:
        """`given` is what this controller was started with."""
        self._given = plain(given)

    def save(self, config: FleetConfig, counts: Mapping[str, int]) -> None:
        """What is wanted now."""
        memo = Memo(self._given, plain(config), dict(counts))
        if memo != self._saved:
            self._put("memo", json.dumps({"given": memo.given, "config": memo.config, "counts": memo.counts}))
            self._saved = memo

    def clear(self) -> None:
        """The fleet has ended, and the claim with it."""
        import ray
        from ray.experimental import internal_kv

        for key in ("memo", "holder"):
            internal_kv._internal_kv_del(key, namespace=self._namespace)
        if self._is_claimed():
            ray.util.remove_placement_group(ray.util.get_placement_group(_CLAIM))

    def _is_claimed(self) -> bool:
        import ray

        try:
            ray.util.get_placement_group(_CLAIM)
        except ValueError:
            return False
        return True

    def _get(self, key: str) -> str:
        from ray.experimental import internal_kv

        return (internal_kv._internal_kv_get(key, namespace=self._namespace) or b"").decode()

    def _put(self, key: str, value: str) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(key, value, namespace=self._namespace)


def plain(config: FleetConfig) -> dict[str, Any]:
    """As the file has it."""
    return config.model_dump(mode="json", exclude_unset=True)
