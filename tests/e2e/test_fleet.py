"""`baton up` on a Ray cluster of several nodes: everything that is done to a fleet, done while clients ask.

One cluster and one fleet for all tests, which go on from where the one before left it. The head node has room for the
router alone; workers are on two others, and in the end on the one that is left.
"""

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from deploy.raylets import NodeSpec, Raylets, pid_at, raylets
from deploy.upped import Clients, Fleet, Stream, ask, up
from engine.server.config import CLUSTER_KEY_VARIABLE
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.fakes.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.slow(seconds=100), pytest.mark.timeout(600)]

PROMPTS = [list(range(3 + i, 80 + i)) for i in range(0, 60, 10)]
NUM_NEW = 60
RIGHT: dict[str, list[list[int]]] = {}
CONFIG: dict[str, Any] = {
    "name": "chat",
    "model_name": "tiny",
    "engine": {"max_model_len": 1024, "kv_memory": "24MiB", "attention_backend": "torch"},
    "pools": {
        "prefill": {"replicas": 1},
        "decode": {"replicas": 1},
        "large": {"role": "decode", "replicas": 0, "cpus": 100},
    },
    "routers": {"port": 0, "grpc_port": 0, "drain_s": 20},
    "place_s": 0.5,
    "restart": {"first_s": 0.1},
}


def config(seed: int) -> dict[str, Any]:
    return {**CONFIG, "model": str(tiny_checkpoint("llama", seed=seed))}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    workers = NodeSpec(cpus=3, resources={"worker_node": 1})
    with raylets(NodeSpec(cpus=0, resources={"baton_router": 1}), workers, workers) as running:
        running.environment[CLUSTER_KEY_VARIABLE] = secrets.token_hex(32)
        yield running


@pytest.fixture(scope="module")
def fleet(cluster: Raylets) -> Iterator[Fleet]:
    with up(cluster, config(0)) as running:
        yield running


def by_phase(body: dict[str, Any], phase: str = "ready") -> dict[str, dict[str, Any]]:
    return {place["id"]: place for place in body["places"] if place["phase"] == phase}


def pids_of(fleet: Fleet) -> dict[str, int]:
    """Of all places."""
    return {id: pid_at(int(place["address"].rpartition(":")[2])) for id, place in by_phase(fleet.body()).items()}


async def answers(fleet: Fleet, model: str) -> list[list[int]]:
    """The right tokens for each of PROMPTS, asked for once, of the model that runs."""
    if model not in RIGHT:
        streams = [Stream(time.monotonic()) for _ in PROMPTS]
        async with grpc.aio.insecure_channel(fleet.grpc) as channel:
            stub = InferenceStub(channel)
            for prompt, stream in zip(PROMPTS, streams, strict=True):
                await ask(stub, prompt, NUM_NEW, stream)
        assert not [stream.error for stream in streams if stream.error]
        RIGHT[model] = [stream.tokens for stream in streams]
    return RIGHT[model]


def check(clients: Clients, *right: list[list[int]]) -> None:
    """Every answer is whole, and of one of those models from its first token to its last."""
    assert not clients.failed, clients.failed
    assert len(clients.streams) >= len(PROMPTS)
    for place, stream in enumerate(clients.streams):
        assert stream.tokens in [each[place % len(PROMPTS)] for each in right], (place, stream)


def test_workers_are_spread_over_nodes_and_the_router_is_pinned(fleet: Fleet, cluster: Raylets) -> None:
    body = fleet.body()
    places, nodes = by_phase(body), {node["address"]: node for node in body["nodes"]}
    assert set(places) == {"prefill-0", "decode-0", "router-0"}
    assert "baton_router" in nodes[places["router-0"]["node"]]["total"]
    workers = {id: places[id]["node"] for id in ("prefill-0", "decode-0")}
    assert workers["prefill-0"] != workers["decode-0"]
    for id, node in workers.items():
        assert nodes[node]["free"]["CPU"] == nodes[node]["total"]["CPU"] - 1, "set aside for its worker"
        assert places[id]["address"].rpartition(":")[0] == node, "it is where it was placed"
    assert len(cluster.actors()) == 3


def test_a_second_controller_is_refused(fleet: Fleet) -> None:
    again = fleet.baton(*fleet.words[1:])
    assert again.returncode == 2
    assert f"process {fleet.process.pid} at " in again.stderr and " controls this service already" in again.stderr


async def test_scale_up_and_down_under_load(fleet: Fleet) -> None:
    right = await answers(fleet, "old")
    async with Clients(fleet.grpc, PROMPTS, NUM_NEW, 3) as clients:
        await fleet.command("scale", "prefill=2", "decode=2")
        await clients.until(6)
        assert {"prefill-1", "decode-1"} <= set(by_phase(fleet.body()))
        used: set[str] = set()
        for number in itertools.count():  # what nobody has cached, so that nobody is preferred for it
            fresh = [[7 + i, 7 + number, *(j % 199 for j in range(400))] for i in range(8)]
            async with Clients(fleet.grpc, fresh, 2, len(fresh)) as burst:
                await burst.until(len(fresh))
            assert not burst.failed
            for stream in [*burst.streams, *clients.streams]:
                used |= {stream.prefill_worker, stream.decode_worker}
            if {"prefill-0", "prefill-1", "decode-0", "decode-1"} <= used:
                break
        await fleet.command("scale", "decode=1")
        await clients.until(3)
    check(clients, right)
    body = fleet.body()
    assert set(by_phase(body)) == {"prefill-0", "prefill-1", "decode-0", "router-0"}
    free = sum(node["free"].get("CPU", 0) for node in body["nodes"])
    assert free == 3, "what the second decode worker had is free again"


def test_what_fits_nowhere_is_said_at_once(fleet: Fleet) -> None:
    refused = fleet.baton("scale", "large=1")
    assert refused.returncode == 1
    assert "large-0 fits on no node: lacks CPU 100 (the best node has 2 left of 3)" in refused.stderr
    assert fleet.baton("scale", "large=0").returncode == 0


async def test_a_worker_changes_its_role_and_keeps_its_process(fleet: Fleet) -> None:
    right = await answers(fleet, "old")
    before = by_phase(fleet.body())["prefill-1"]
    pid = pid_at(int(before["address"].rpartition(":")[2]))
    async with Clients(fleet.grpc, PROMPTS, NUM_NEW, 3) as clients:
        await fleet.command("role", "prefill-1", "decode")
        await clients.until(6)
    check(clients, right)
    after = by_phase(fleet.body())["prefill-1"]
    assert (after["pool"], after["deaths"]) == ("decode", 0) and after["incarnation"] != before["incarnation"]
    assert pid_at(int(after["address"].rpartition(":")[2])) == pid
    (worker,) = (each for each in fleet.workers() if each["id"] == "prefill-1")
    assert worker["roles"] == ["decode"]
    assert "prefill-1" in {stream.decode_worker for stream in clients.streams}


async def test_a_fleet_outlives_its_controller_and_the_next_one_takes_it_over(fleet: Fleet) -> None:
    """As scaling and the change of a role have left it, which is not as the file says."""
    right = await answers(fleet, "old")
    before, pids = by_phase(fleet.body()), pids_of(fleet)
    async with Clients(fleet.grpc, PROMPTS, NUM_NEW, 3) as clients:
        await clients.until(3)
        fleet.process.kill()
        fleet.process.wait()
        assert fleet.baton("fleet").returncode == 1, "nobody controls it"
        await clients.until(6)
        strange = {**fleet.environment, CLUSTER_KEY_VARIABLE: "of another service"}
        refused = await asyncio.to_thread(
            subprocess.run, fleet.words, env=strange, capture_output=True, text=True, check=False
        )
        assert refused.returncode == 2 and "has another cluster key" in refused.stderr
        await asyncio.to_thread(fleet.up_again)
        after = by_phase(fleet.body())
        assert {id: (place["pool"], place["incarnation"]) for id, place in after.items()} == {
            id: (place["pool"], place["incarnation"]) for id, place in before.items()
        }
        assert pids_of(fleet) == pids
        await fleet.command("scale", "prefill=2", "decode=1")
        await clients.until(3)
    check(clients, right)
    assert set(by_phase(fleet.body())) == {"prefill-0", "prefill-2", "decode-0", "router-0"}


def test_a_controller_may_leave_a_fleet_running(fleet: Fleet) -> None:
    before = by_phase(fleet.body())
    fleet.process.kill()
    fleet.process.wait()
    fleet.up_again("--leave-running")
    fleet.process.terminate()
    assert fleet.process.wait(20) == 0
    fleet.up_again()
    assert by_phase(fleet.body()) == before


def test_what_lost_its_controller_is_ended_without_one(fleet: Fleet, cluster: Raylets, tmp_path: Path) -> None:
    """While its processes start: nothing is left of them, and the room that they had is free."""
    path, before = tmp_path / "config.yaml", fleet.body()["nodes"]
    path.write_text(yaml.safe_dump({**config(0), "name": "other"}))
    words = [*fleet.words[:2], str(path), *fleet.words[3:]]
    num_actors = len(cluster.actors())
    controller = subprocess.Popen(words, env=fleet.environment, stderr=subprocess.DEVNULL)
    while len(cluster.actors()) < num_actors + 2:
        time.sleep(0.1)
    controller.kill()
    controller.wait()
    ended = fleet.baton("down", "--name", "other", "--address", cluster.address)
    assert ended.returncode == 0, ended.stderr
    assert len(cluster.actors()) == num_actors
    again = fleet.baton("down", "--name", "other", "--address", cluster.address)
    assert again.returncode == 2 and "no service 'other' runs on that cluster" in again.stderr
    refused = fleet.baton("down", "--name", "chat", "--address", cluster.address)
    assert refused.returncode == 2 and "controls this service already" in refused.stderr
    while fleet.body()["nodes"] != before:  # Ray is a second late to say so
        time.sleep(0.1)


async def test_a_router_that_gets_sigterm_finishes_its_answers(fleet: Fleet) -> None:
    port = int(fleet.url.rpartition(":")[2])
    pid = pid_at(port)
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:
        stream = Stream(time.monotonic())
        call = asyncio.create_task(ask(InferenceStub(channel), PROMPTS[0], 600, stream))
        while not stream.tokens:
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
        await call
    assert (stream.error, len(stream.tokens)) == ("", 600)
    while True:  # its successor has the same ports
        try:
            if fleet.get("/status")["ready"]:
                break
        except OSError:
            pass
        await asyncio.sleep(0.1)
    assert pid_at(port) != pid


async def test_a_rolling_update_fails_no_request_and_mixes_no_models(fleet: Fleet, tmp_path: Path) -> None:
    """The new config wants one prefill worker less, too."""
    old = await answers(fleet, "old")
    path = tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump({**config(1), "name": "other"}))
    refused = fleet.baton("update", str(path))
    assert refused.returncode == 2 and "name: the service is 'chat'" in refused.stderr
    path.write_text(yaml.safe_dump(config(1)))
    reasons: set[str] = set()

    async def watch() -> None:
        while True:
            workers = await asyncio.to_thread(fleet.workers)
            reasons.update(peer["detail"] for worker in workers for peer in worker["peers"] if not peer["ready"])
            await asyncio.sleep(0.1)

    async with Clients(fleet.grpc, PROMPTS, NUM_NEW, 3) as clients:
        watching = asyncio.create_task(watch())
        await fleet.command("update", str(path))
        watching.cancel()
        await clients.until(3)
    new = await answers(fleet, "new")
    assert all(a != b for a, b in zip(old, new, strict=True))
    check(clients, old, new)
    assert any(reason.startswith("different models: ") for reason in reasons), reasons
    body = fleet.body()
    assert len(by_phase(body)) == 3
    assert {place["version"] for place in body["places"]} == {"", body["pools"]["decode"]["version"]}


async def test_a_node_is_lost_under_load(fleet: Fleet, cluster: Raylets) -> None:
    right = await answers(fleet, "new")
    before = by_phase(fleet.body())
    lost = next(place["node"] for place in before.values() if place["pool"] == "decode")
    there = {id for id, place in before.items() if place["node"] == lost}

    def replaced(now: dict[str, dict[str, Any]]) -> bool:
        """All that was there is ready elsewhere. That it is still listed as ready there is no news."""
        fresh = {id for id, place in now.items() if place["incarnation"] != before.get(id, place)["incarnation"]}
        return there <= fresh and all(now[id]["node"] != lost for id in there)

    async with Clients(fleet.grpc, PROMPTS, NUM_NEW, 3, timeout_s=30.0) as clients:
        await clients.until(3)
        await asyncio.to_thread(cluster.lose, lost)
        await clients.until(6)
        while not replaced(by_phase(await asyncio.to_thread(fleet.body))):
            await asyncio.sleep(0.1)
        await clients.until(3)
    for place, stream in enumerate(clients.streams):
        assert stream.ended_s - stream.started_s < 31.0, "inside its deadline"
        assert stream.error or stream.tokens == right[place % len(PROMPTS)]
    assert not clients.failed


async def test_sigterm_lets_answers_finish_and_leaves_nothing(fleet: Fleet, cluster: Raylets) -> None:
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:
        stream = Stream(time.monotonic())
        call = asyncio.create_task(ask(InferenceStub(channel), PROMPTS[0], 600, stream))
        while not stream.tokens:
            await asyncio.sleep(0.01)
        fleet.process.terminate()
        await call
    assert (stream.error, len(stream.tokens)) == ("", 600), fleet.log.read_text()
    assert await asyncio.to_thread(fleet.process.wait, 20) == 0
    assert not cluster.actors(), "nothing is left"
