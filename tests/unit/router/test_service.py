"""The asyncio shell over real gRPC sessions: calls, cancellation, lost and hung workers, adding and removing."""

import asyncio
import random
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from engine.core.errors import Cancelled, DeadlineExceeded, NotFound, Overloaded
from engine.core.types import FinishReason, Sampling
from engine.wire.worker_client import WorkerClient
from router.api import Delta, GenerateCall
from router.breaker import BreakerState
from router.config import AdmissionConfig, HealthConfig, RouterConfig
from router.core import RouterCore
from router.policies.registry import make_policy
from router.service import RouterService
from tests.fakes.grpc_worker import KEY, FakeCluster, GrpcWorker
from tests.fakes.workers import answer, worker_info

WAIT_S = 20.0


def make_service(config: RouterConfig | None = None, policy: str = "cost_always_hand_over") -> RouterService:
    core = RouterCore(config or RouterConfig(), random.Random(1), lambda model, rng: make_policy(policy, model, rng))
    return RouterService(core, lambda address: WorkerClient(address, KEY))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def call_of(prompt: list[int], timeout_s: float = WAIT_S, **sampling: object) -> GenerateCall:
    settings = Sampling(**{"seed": 5, "max_tokens": 20, **sampling})  # type: ignore[arg-type]
    return GenerateCall("call", array("i", prompt), settings, timeout_s)


async def collect(service: RouterService, call: GenerateCall) -> list[Delta]:
    async with aclosing(service.generate(call)) as deltas:
        return [delta async for delta in deltas]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def num_ready(service: RouterService) -> int:
    return sum(worker.state == "ready" for worker in service.status().workers)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
async def service() -> AsyncIterator[RouterService]:
    service = make_service()
    await service.start()
    yield service
    await service.stop()


async def start_pair(cluster: FakeCluster, service: RouterService) -> tuple[GrpcWorker, GrpcWorker]:
    prefill = await cluster.start(worker_info("p", roles=("prefill",)))
    decode = await cluster.start(worker_info("d", roles=("decode",)))
    for worker in (prefill, decode):
        service.add_worker(worker.info.address)
    await until(lambda: (prefill.worker.key, decode.worker.key) in service._core.view.links)
    return prefill, decode


async def test_a_call_goes_through_a_pair(cluster: FakeCluster, service: RouterService) -> None:
    prefill, decode = await start_pair(cluster, service)
    call = call_of(list(range(30)))
    deltas = await collect(service, call)
    assert tokens_of(deltas) == answer(call.tokens, call.sampling)
    assert deltas[0].cached_tokens == 0
    last = deltas[-1]
    assert last.finish_reason is FinishReason.LENGTH and last.timing
    assert (last.timing.prefill_worker, last.timing.decode_worker) == ("p", "d")
    await until(lambda: prefill.worker.idle and decode.worker.idle)
    await collect(service, call)
    status = service.status()
    assert (status.prompt_tokens, status.cached_tokens) == (60, 28), "all but the page of the last token"


async def test_concurrent_calls_do_not_mix(cluster: FakeCluster, service: RouterService) -> None:
    await start_pair(cluster, service)
    calls = [call_of([n] * (n + 1), seed=n) for n in range(40)]
    results = await asyncio.gather(*(collect(service, call) for call in calls))
    for call, deltas in zip(calls, results, strict=True):
        assert tokens_of(deltas) == answer(call.tokens, call.sampling)


async def test_closing_the_iterator_frees_both_sides(cluster: FakeCluster, service: RouterService) -> None:
    prefill, decode = await start_pair(cluster, service)
    async with aclosing(service.generate(call_of([1, 2, 3], max_tokens=100_000))) as deltas:
        async for _ in deltas:
            break
    await until(lambda: prefill.worker.idle and decode.worker.idle)
    assert service.status().running_requests == 0


async def test_a_slow_reader_gets_several_tokens_at_once_and_loses_none(
    cluster: FakeCluster, service: RouterService
) -> None:
    await start_pair(cluster, service)
    call = call_of([1, 2, 3], num_logprobs=0)
    async with aclosing(service.generate(call)) as generator:
        deltas = [await anext(generator)]
        await until(lambda: service.status().running_requests == 0)
        deltas += [delta async for delta in generator]
    assert tokens_of(deltas) == answer(call.tokens, call.sampling)
    assert len(deltas) <= 3 and len(deltas[-1].logprobs) == len(deltas[-1].tokens) > 1


async def test_a_killed_worker_is_replaced_in_the_middle_of_a_stream(
    cluster: FakeCluster, service: RouterService
) -> None:
    _, decode = await start_pair(cluster, service)
    other = await cluster.start(worker_info("d2", roles=("decode",)))
    service.add_worker(other.info.address)
    await until(lambda: num_ready(service) == 3)
    call = call_of([1, 2, 3], max_tokens=60)
    tokens: list[int] = []
    async with aclosing(service.generate(call)) as deltas:
        async for delta in deltas:
            tokens += delta.tokens
            busy = [worker for worker in (decode, other) if worker.worker.rows]
            if len(tokens) > 3 and len(busy) == 1 and decode.running and other.running:
                await busy[0].stop()
    assert tokens == answer(call.tokens, call.sampling)
    assert service.status().workers and num_ready(service) == 2


async def test_a_restarted_worker_joins_again_under_its_address(cluster: FakeCluster, service: RouterService) -> None:
    first = await cluster.start(worker_info("w"))
    service.add_worker(first.info.address)
    await until(lambda: service.status().ready)
    await first.stop()
    await until(lambda: not service.status().ready)
    status = service.status()
    assert status.workers[0].state == "lost" and first.info.address in status.detail
    port = int(first.info.address.rpartition(":")[2])
    await cluster.start(replace(first.info, incarnation=2), port)
    await until(lambda: service.status().ready)
    assert service.status().workers[0].info.incarnation == 2
    call = call_of([4, 5, 6])
    assert tokens_of(await collect(service, call)) == answer(call.tokens, call.sampling)


async def test_a_frozen_worker_is_routed_around_and_comes_back(cluster: FakeCluster) -> None:
    service = make_service(RouterConfig(health=HealthConfig(hung_after_s=0.4)), policy="cost")
    await service.start()
    workers = [await cluster.start(worker_info(name)) for name in ("w1", "w2")]
    for worker in workers:
        service.add_worker(worker.info.address)
    await until(lambda: num_ready(service) == 2)
    workers[0].frozen = True
    calls = [call_of([n, n, n]) for n in range(6)]
    results = await asyncio.gather(*(collect(service, call) for call in calls))
    assert [tokens_of(deltas) for deltas in results] == [answer(call.tokens, call.sampling) for call in calls]
    assert {worker.info.id: worker.state for worker in service.status().workers}["w1"] in ("hung", "lost")
    workers[0].frozen = False
    await until(lambda: num_ready(service) == 2)
    await until(lambda: workers[0].worker.idle)
    await service.stop()


async def test_a_call_without_workers_ends_at_its_deadline(service: RouterService) -> None:
    assert not service.status().ready
    with pytest.raises(DeadlineExceeded):
        await collect(service, call_of([1], timeout_s=0.3))


async def test_more_calls_than_places_are_refused_with_a_hint(service: RouterService) -> None:
    service = make_service(RouterConfig(admission=AdmissionConfig(max_running=1, max_queued=1)))
    waiting = [asyncio.create_task(collect(service, call_of([1]))) for _ in range(2)]
    await until(lambda: service.status().queued_requests == 1)
    with pytest.raises(Overloaded) as refusal:
        await collect(service, call_of([1]))
    assert refusal.value.retry_after_s
    await service.stop()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, Cancelled)


async def test_what_a_removed_worker_has_moves_or_ends_there(cluster: FakeCluster, service: RouterService) -> None:
    old = await cluster.start(worker_info("old"))
    service.add_worker(old.info.address)
    await until(lambda: service.status().ready)
    call = call_of([1, 2], max_tokens=30)
    running = asyncio.create_task(collect(service, call))
    await until(lambda: bool(old.worker.rows))
    new = await cluster.start(worker_info("new"))
    service.add_worker(new.info.address)
    await until(lambda: num_ready(service) == 2)
    await service.remove_worker(old.info.address, drain_s=WAIT_S)
    deltas = await running
    assert [token for delta in deltas for token in delta.tokens] == answer(call.tokens, call.sampling)
    timing = deltas[-1].timing
    assert timing and timing.prefill_worker == "old"
    last = (await collect(service, call))[-1]
    assert last.timing and last.timing.decode_worker == "new"
    assert [worker.info.id for worker in service.status().workers] == ["new"]
    with pytest.raises(NotFound):
        await service.remove_worker(old.info.address)


async def test_a_worker_of_another_model_is_refused_in_words(cluster: FakeCluster, service: RouterService) -> None:
    good = await cluster.start(worker_info("good"))
    service.add_worker(good.info.address)
    await until(lambda: service.status().ready)
    stranger = worker_info("stranger")
    stranger = replace(stranger, model="other", layout=replace(stranger.layout, model_hash="other"))
    bad = await cluster.start(stranger)
    service.add_worker(bad.info.address)
    service.add_worker(good.info.address)
    await until(lambda: len(service.status().workers) == 2)
    states = {worker.info.id: worker for worker in service.status().workers}
    await until(lambda: service.status().workers[1].state == "refused")
    assert states["good"].state == "ready"
    detail = service.status().workers[1].detail
    assert detail.startswith("worker stranger serves other (") and ", the others serve test (test-mod)" in detail


async def test_a_worker_that_fails_rests_and_is_probed_until_it_works_again(cluster: FakeCluster) -> None:
    health = HealthConfig(breaker_failures=2, breaker_open_s=0.05, breaker_max_open_s=0.1)
    service = make_service(RouterConfig(health=health), policy="least_loaded")
    await service.start()
    bad, good = [await cluster.start(worker_info(name)) for name in ("bad", "good")]
    for worker in (bad, good):
        service.add_worker(worker.info.address)
    await until(lambda: num_ready(service) == 2)
    bad.worker.faults.refuse = 1.0

    async def calls_until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                call = call_of(list(range(9)), max_tokens=2)
                assert tokens_of(await collect(service, call)) == answer(call.tokens, call.sampling), "tried elsewhere"

    def states() -> dict[str, str]:
        return {status.info.id: status.state for status in service.status().workers}

    await calls_until(lambda: states() == {"bad": "resting", "good": "ready"})
    assert service._core.stats.retries["worker_error"] >= 2
    bad.worker.faults.refuse = 0.0
    await calls_until(lambda: service._core.view.find("bad")[0].breaker.state is BreakerState.CLOSED)
    assert states() == {"bad": "ready", "good": "ready"}
    await service.stop()
