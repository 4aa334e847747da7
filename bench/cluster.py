"""What clients notice of a fleet that changes: `python -m bench.cluster --json`. Real Ray nodes, workers and sockets.

Three nodes on this machine: a head for the router, two for workers. While closed-loop clients ask:

- scale: one decode worker more; seconds from the command to the first token that it drew, TTFT meanwhile and before.
- node loss: every process of a worker node is killed at once; for each answer under way the longest wait for a token
  from then on (who was there is redirected in it), seconds until the fleet is whole again, answers that failed.

No fraction of a hardware limit: what is measured is mostly the start of a Python process and the model's load.
"""

import argparse
import asyncio
import json
import re
import time
import urllib.request
from typing import Any

from bench.report import percentile
from deploy.raylets import NodeSpec, Raylets, raylets
from deploy.upped import Clients, Fleet, Stream, up

NUM_NEW = 200


def config(model: str) -> dict[str, Any]:
    """One prefill and two decode workers; the nodes have room for twice that."""
    return {
        "name": "bench",
        "model": model,
        "engine": {"kv_memory": "64MiB"},
        "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 2}},
        "routers": {"port": 0, "grpc_port": 0},
    }


def prompts(number: int, num_tokens: int) -> list[list[int]]:
    """No two begin alike, so that nothing is cached."""
    return [[10 + (number_ * 7 + i * 13) % 200 for i in range(num_tokens)] for number_ in range(number)]


def ttft_ms(streams: list[Stream]) -> dict[str, float]:
    """Percentiles of those that got a token."""
    times = [stream.ttft_s * 1e3 for stream in streams if stream.tokens]
    return {f"p{percent}": round(percentile(times, percent), 1) for percent in (50, 90, 99)} | {"requests": len(times)}


async def scale(fleet: Fleet, num_clients: int) -> dict[str, Any]:
    """A third decode worker."""
    async with Clients(fleet.grpc, prompts(97, 120), NUM_NEW, num_clients) as clients:
        await clients.until(2 * num_clients)
        asked_s = time.monotonic()
        command = asyncio.create_task(fleet.command("scale", "decode=3"))
        while not any(stream.decode_worker == "decode-2" for stream in clients.streams):
            await asyncio.sleep(0.01)
            if command.done():
                command.result()
        await command
        settled_s = time.monotonic()
        await clients.until(2 * num_clients)
    first = min(stream.second_s for stream in clients.streams if stream.decode_worker == "decode-2")
    before = [stream for stream in clients.streams if stream.started_s < asked_s]
    during = [stream for stream in clients.streams if asked_s <= stream.started_s < settled_s]
    return {
        "scale_to_first_token_s": round(first - asked_s, 2),
        "scale_to_ready_s": round(settled_s - asked_s, 2),
        "ttft_before_ms": ttft_ms(before),
        "ttft_during_ms": ttft_ms(during),
        "failed": len(clients.failed),
    }


async def lose(fleet: Fleet, cluster: Raylets, num_clients: int) -> dict[str, Any]:
    """The node with decode-0 on it."""
    body = fleet.body()
    node = next(place["node"] for place in body["places"] if place["id"] == "decode-0")
    there = {place["id"]: place["incarnation"] for place in body["places"] if place["node"] == node}
    retried = count(fleet, "baton_router_retries_total")
    async with Clients(fleet.grpc, prompts(89, 120), NUM_NEW, num_clients) as clients:
        await clients.until(2 * num_clients)
        killed_s = await asyncio.to_thread(cluster.lose, node)
        await clients.until(2 * num_clients)
        whole_s = await until_whole(fleet, there)
        await clients.until(num_clients)
    caught = [stream for stream in clients.streams if stream.started_s < killed_s < stream.ended_s]
    silences = sorted(round(stream.silence_after(killed_s), 2) for stream in caught)
    return {
        "workers_lost": len(there),
        "answers_under_way": len(caught),
        "longest_silence_s": silences,
        "kill_to_whole_s": round(whole_s - killed_s, 2),
        "attempts_retried": count(fleet, "baton_router_retries_total") - retried,
        "failed": len(clients.failed),
        "ttft_ms": ttft_ms([stream for stream in clients.streams if stream.started_s > killed_s]),
    }


async def until_whole(fleet: Fleet, lost: dict[str, str]) -> float:
    """When the workers that were lost are ready again, as others."""
    while True:
        body = await asyncio.to_thread(fleet.body)
        back = {
            place["id"]
            for place in body["places"]
            if place["phase"] == "ready" and place["incarnation"] != lost.get(place["id"])
        }
        if lost.keys() <= back:
            return time.monotonic()
        await asyncio.sleep(0.05)


def count(fleet: Fleet, name: str) -> int:
    """A counter of the router, over all labels."""
    with urllib.request.urlopen(fleet.url + "/metrics", timeout=30) as metrics:
        text: str = metrics.read().decode()
    return int(sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


def main() -> None:
    """One JSON object, or the same in lines."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--json", action="store_true")
    flags.add_argument("--model", default="builtin")
    flags.add_argument("--clients", type=int, default=3)
    arguments = flags.parse_args()
    workers = NodeSpec(cpus=4)
    with raylets(NodeSpec(cpus=0, resources={"baton_router": 1}), workers, workers) as cluster:
        with up(cluster, config(arguments.model)) as fleet:
            report = {
                "bench": "cluster",
                "clients": arguments.clients,
                "scale": asyncio.run(scale(fleet, arguments.clients)),
                "node_loss": asyncio.run(lose(fleet, cluster, arguments.clients)),
            }
    if arguments.json:
        print(json.dumps(report))
        return
    for part in ("scale", "node_loss"):
        for name, value in report[part].items():
            print(f"{part}.{name}: {value}")


if __name__ == "__main__":
    main()
