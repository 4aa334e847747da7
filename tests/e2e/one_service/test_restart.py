"""A killed process comes back by itself, under a new incarnation and on its feet; clients wait, or notice nothing."""

import time

import pytest

from deploy.spawned import Service
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, generate

pytestmark = [pytest.mark.slow(seconds=30), pytest.mark.timeout(600)]

HEAL_S = 240.0


def incarnations(service: Service) -> dict[str, str]:
    return {worker["id"]: worker["incarnation"] for worker in service.workers() if worker["state"] == "ready"}


def kill(service: Service, role: str) -> None:
    (process,) = [process for process in service.processes()[1:] if role in " ".join(process.cmdline())]
    process.kill()


@pytest.mark.parametrize(("role", "worker"), [("PrefillWorker", "prefill-0"), ("DecodeWorker", "decode-0")])
async def test_a_killed_worker_is_replaced(quiet_service: Service, role: str, worker: str) -> None:
    prompt = list(range(3, 80))
    async with connect(quiet_service.grpc) as channel:
        stub = InferenceStub(channel)
        (expected,) = await generate(stub, prompt, temperature=0.0, max_tokens=8)
        before = incarnations(quiet_service)
        kill(quiet_service, role)
        # With the other worker alone, or after a moment: either way the right tokens and no error.
        (meanwhile,) = await generate(stub, prompt, temperature=0.0, max_tokens=8)
        assert meanwhile.tokens == expected.tokens
        end_s = time.monotonic() + HEAL_S
        while len(now := incarnations(quiet_service)) < 2 or now[worker] == before[worker]:
            assert time.monotonic() < end_s, quiet_service.log.read_text()
            time.sleep(0.1)
        (after,) = await generate(stub, prompt, temperature=0.0, max_tokens=8)
        assert after.tokens == expected.tokens


async def test_a_killed_router_comes_back_on_the_same_ports(quiet_service: Service) -> None:
    kill(quiet_service, "Router")
    end_s = time.monotonic() + HEAL_S
    while True:
        try:
            if quiet_service.get("/health")["ready"] and len(incarnations(quiet_service)) == 2:
                break
        except OSError:
            assert time.monotonic() < end_s, quiet_service.log.read_text()
        time.sleep(0.1)
    async with connect(quiet_service.grpc) as channel:
        (answer,) = await generate(InferenceStub(channel), [1, 2, 3], temperature=0.0, max_tokens=4)
        assert len(answer.tokens) == 4
