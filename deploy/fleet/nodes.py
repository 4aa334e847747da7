"""Ray's nodes, and room on them: what is set aside for one process, from before its start until after its end.

Room has the name of the process that it is for, and outlives the controller that asked for it.
"""

import asyncio
from collections.abc import Collection, Mapping
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

    def __init__(self, namespace: str) -> None:
        """`namespace` of the fleet's actors."""
        self._prefix = f"{namespace}:"

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

    async def reserve(self, node: Node, resources: Mapping[str, float], name: str) -> Room:
        """Set that aside for the process of that name. Raises Unavailable when the node has too little after all."""
        from ray.util.placement_group import placement_group

        wanted = {name: amount for name, amount in resources.items() if amount}
        if not wanted:
            return Room(node, {}, None)
        # One bundle, which lies on one node by its nature; STRICT_PACK says that it is meant so.
        group = placement_group(
            [wanted],
            strategy="STRICT_PACK",
            name=self._prefix + name,
            lifetime="detached",
            bundle_label_selector=[{NODE_LABEL: node.id}],
        )
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

    def room_of(self, name: str, node_id: str, resources: Mapping[str, float]) -> Room | None:
        """What an earlier controller set aside for the process of that name; None when that is not there any more."""
        import ray

        node = next((node for node in self.view() if node.id == node_id), None)
        try:
            group = ray.util.get_placement_group(self._prefix + name) if resources else None
        except ValueError:
            return None
        return None if node is None else Room(node, resources, group)

    def release_all_but(self, names: Collection[str]) -> None:
        """Give back what is set aside for processes that are not there."""
        import ray

        for group in ray.util.placement_group_table().values():
            name = str(group["name"])
            if name.startswith(self._prefix) and group["state"] != "REMOVED":
                if name.removeprefix(self._prefix) not in names:
                    ray.util.remove_placement_group(ray.util.get_placement_group(name))
