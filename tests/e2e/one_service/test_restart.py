"""A killed process comes back by itself, under a new incarnation and on its feet; clients wait, or notice nothing."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import psutil
import pytest

from deploy.spawned import BATON, Service, Site, environment
from engine.wire.inference_pb2_grpc import InferenceStub
from tests.e2e.calls import connect, generate

pytestmark = [pytest.mark.slow(seconds=60), pytest.mark.timeout(600)]

HEAL_S = 240.0


def incarnations(service: Site) -> dict[str, str]:
    return {worker["id"]: worker["incarnation"] for worker in service.workers() if worker["state"] == "ready"}


def kill(service: Service, role: str) -> None:
    (process,) = [process for process in service.processes()[1:] if role in " ".join(process.cmdline())]
    process.kill()


def kill_router(service: Service, site: Site) -> None:
    """The process that listens where `site` is."""
    port = int(site.url.rpartition(":")[2])
    (process,) = [each for each in service.processes()[1:] if port in listening(each)]
    process.kill()


def listening(process: psutil.Process) -> set[int]:
    connections = process.net_connections("tcp")
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def wait_ready(site: Site, service: Service) -> None:
    end_s = time.monotonic() + HEAL_S
    while True:
        try:
            if site.get("/health")["ready"] and len(incarnations(site)) == 2:
                return
        except OSError:
            assert time.monotonic() < end_s, service.log.read_text()
        time.sleep(0.1)


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
    kill_router(quiet_service, quiet_service)
    wait_ready(quiet_service, quiet_service)
    async with connect(quiet_service.grpc) as channel:
        (answer,) = await generate(InferenceStub(channel), [1, 2, 3], temperature=0.0, max_tokens=4)
        assert len(answer.tokens) == 4


async def test_of_two_routers_one_dies_under_load_and_the_other_goes_on(quiet_service: Service) -> None:
    """The other has the same pages in its index: what went through the dead one is found in the workers' caches."""
    (other,) = quiet_service.others
    model = quiet_service.get("/v1/models")["data"][0]["id"]
    body = {"model": model, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    prompts = [list(range(start, start + 96)) for start in range(5, 13)]
    expected = [quiet_service.post("/v1/completions", body | {"prompt": prompt}) for prompt in prompts]
    shown = subprocess.run(
        [BATON, "status", "--url", other.url], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert f"router {quiet_service.url}: ready" in shown and f"router {other.url}: ready" in shown

    with ThreadPoolExecutor(len(prompts)) as pool:
        lost = [pool.submit(quiet_service.post, "/v1/completions", body | {"prompt": [7, *p]}) for p in prompts]
        kept = [pool.submit(other.post, "/v1/completions", body | {"prompt": p}) for p in prompts]
        kill_router(quiet_service, quiet_service)
        answers = [each.result() for each in kept]
        ended = [each.exception() or each.result() for each in lost]
    assert all(isinstance(each, (OSError, HTTPException, dict)) for each in ended), "an answer or a broken connection"
    for answer, before in zip(answers, expected, strict=True):
        assert answer["choices"] == before["choices"]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 80
    wait_ready(quiet_service, quiet_service)
    again = quiet_service.post("/v1/completions", body | {"prompt": prompts[0]})
    assert again["choices"] == expected[0]["choices"]
    other.wait_idle()
