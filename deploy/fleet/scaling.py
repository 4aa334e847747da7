"""The shell of the autoscaler: looks at the routers every now and then, and scales as `baton scale` would."""

import asyncio
import time
from collections.abc import Callable

from deploy.fleet.autoscale import Autoscaler, pressure
from deploy.fleet.config import ROUTER_POOL, AutoscaleConfig
from deploy.fleet.controller import Controller
from deploy.fleet.measuring import Meter
from deploy.fleet.plan import Phase


async def autoscale(controller: Controller, config: AutoscaleConfig, say: Callable[[str], None]) -> None:
    """Until cancelled."""
    meter = Meter(config.objectives)
    scaler = Autoscaler(config.bounds, config.scale)
    while True:
        await asyncio.sleep(config.every_s)
        metrics, statuses = await controller.routers.metrics(), await controller.routers.statuses()
        now = time.monotonic()
        ready: dict[str, list[str]] = {name: [] for name in controller.counts if name != ROUTER_POOL}
        for place in controller.places.values():
            if place.phase is Phase.READY and place.pool in ready:
                ready[place.pool].append(place.id)
        for pool, sample in meter.samples(metrics, statuses, ready, now).items():
            reading = pressure(controller.config.role_of(pool), sample, config.objectives)
            decision = scaler.decide(pool, controller.counts[pool], sample, reading, now)
            if decision is not None:
                say(f"autoscale: {pool} {controller.counts[pool]} -> {decision.count} ({decision.reason})")
                controller.scale({pool: decision.count})
