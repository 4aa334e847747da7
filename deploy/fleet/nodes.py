"""Ray's nodes, and room on them: what is set aside for one process, from before its start until after its end."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.fleet.placing import Node
from engine.core.errors import Unavailable

NODE_LABEL = "ray.io/node-id"
RESERVE_S = 5.0
"""Ray sets room aside in milliseconds, unless somebody else was faster."""
_OWN = ("CPU", "GPU", "memory")
"""Resources that Ray has arguments of their own for."""


@dataclass(frozen=True, slots=True)
class Room:
    """On one node. `group` is None for a process that needs nothing set aside."""

    node: Node
    resources: Mapping[str, float]
    group: Any

    def options(self) -> dict[str, object]:
        """Of the actor that goes there: it takes all of it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        if self.group is None:
            strategy: object = NodeAffinitySchedulingStrategy(self.node.id, soft=False)
        else:
            strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=0)
        options: dict[str, object] = {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "resources": {name: amount for name, amount in self.resources.items() if name not in _OWN},
            "scheduling_strategy": strategy,
        }
        if "memory" in self.resources:
            options["memory"] = self.resources["memory"]
        return options


class RayNodes:
    """What deploy.fleet asks Ray for, besides processes."""

    def view(self) -> list[Node]:
        """Live nodes."""
        import ray
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        return [
            Node(
                id=node["NodeID"],
                total=node["Resources"],
                free=free.get(node["NodeID"], {}),
                labels=node.get("Labels") or {},
                address=node["NodeManagerAddress"],
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def own(self) -> str:
        """The id of the node that this process is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def reserve(self, node: Node, resources: Mapping[str, float]) -> Room:
        """Set `resources` aside there. Raises Unavailable when the node has too little after all."""
        from ray.util.placement_group import placement_group

        wanted = {name: amount for name, amount in resources.items() if amount}
        if not wanted:
            return Room(node, {}, None)
        # One bundle, which lies on one node by its nature; STRICT_PACK says that it is meant so.
        group = placement_group([wanted], strategy="STRICT_PACK", bundle_label_selector=[{NODE_LABEL: node.id}])
        room = Room(node, wanted, group)
        try:
            if await asyncio.to_thread(group.wait, RESERVE_S):
                return room
        except BaseException:
            self.release(room)
            raise
        self.release(room)
        raise Unavailable(f"node {node.address} has no room after all")

    def release(self, room: Room) -> None:
        """Give it back, and end what still runs there. Idempotent."""
        from ray.util.placement_group import remove_placement_group

        if room.group is not None:
            remove_placement_group(room.group)


def live_names(namespace: str) -> list[str]:
    """Named actors that are there."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(str(actor["name"]) for actor in actors if actor["namespace"] == namespace)
