"""What of a running fleet another config may change."""

from collections.abc import Mapping

from deploy.fleet.config import ROUTER_POOL, FleetConfig
from engine.core.errors import InvalidRequest


def check_update(old: FleetConfig, new: FleetConfig) -> FleetConfig:
    """`new`, with the name that clients know. Raises InvalidRequest for what only another service can be."""
    if new.name != old.name:
        raise InvalidRequest(f"name: the service is {old.name!r}")
    if not new.model_name:
        new = new.model_copy(update={"model_name": old.served_name})
    if new.served_name != old.served_name:
        raise InvalidRequest(f"model_name: clients know it as {old.served_name!r}; start another service")
    same = {"replicas": 1}
    if new.routers.model_copy(update=same) != old.routers.model_copy(update=same):
        raise InvalidRequest("routers: only replicas can be updated; start another service")
    if new.tls != old.tls:
        raise InvalidRequest("tls: its files may change, not their names; start another service")
    if new.autoscale != old.autoscale:
        raise InvalidRequest("autoscale: it cannot be updated; give it to a new controller")
    return new


def counts_after(config: FleetConfig, counts: Mapping[str, int]) -> dict[str, int]:
    """By pool: what the file says, or, where the number is found automatically, what has been found so far."""
    wanted = {name: config.count_of(name) for name in (*config.pools, ROUTER_POOL)}
    for pool, bounds in (config.autoscale.bounds if config.autoscale else {}).items():
        wanted[pool] = min(max(counts.get(pool, wanted[pool]), bounds.min), bounds.max)
    return wanted
