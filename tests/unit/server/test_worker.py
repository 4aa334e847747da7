"""The whole shell with real threads and sockets: sessions, handoffs, stops and deaths. Integers stand for KV."""

import asyncio
import random
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import reduce
from operator import xor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from engine.core.digest import page_keys
from engine.core.errors import Unavailable
from engine.core.messages import (
    Adopt,
    Cancel,
    Drain,
    Finished,
    Generate,
    PagesCleared,
    PeerJoined,
    Prefill,
    Release,
    SendPrefixes,
)
from engine.core.types import FinishReason, StepOutput, StepPlan
from engine.server.departure import QUIET_S
from engine.server.dispatch import LOAD_INTERVAL_S
from engine.wire.worker_client import WorkerClient, WorkerLost
from engine.wire.worker_pb2_grpc import WorkerStub
from kv_transfer.transports.local import LocalHub
from tests.fakes.router_session import RouterSession, join
from tests.fakes.thread_worker import Worker, on_clock, start_fake_worker
from tests.fakes.virtual_worker import make_request, right_tokens

TIMEOUT_S = 20.0


@contextmanager
def running(kind: str, hub: LocalHub | None = None, **options: object) -> Iterator[Worker]:
    worker = start_fake_worker(kind, hub, **options)  # type: ignore[arg-type]
    try:
        yield worker
    finally:
        worker.stop()


@asynccontextmanager
async def connected(*workers: Worker) -> AsyncIterator[list[RouterSession]]:
    routers = [RouterSession(worker.info.address) for worker in workers]
    for router in routers:
        await router.open()
    try:
        yield routers
    finally:
        for router in routers:
            await router.close()


async def test_generate() -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            assert router.info == worker.info
            requests = [make_request(id, range(id, id + 20), max_tokens=10, deadline_s=on_clock(60)) for id in range(8)]
            router.send(*(Generate(request) for request in requests))
            await router.until(lambda: len(router.all("finished")) == 8)
            for request in requests:
                assert router.tokens[request.id] == right_tokens(request)
                assert router.finished(request.id) == [Finished(request.id, FinishReason.LENGTH)]
            assert len(router.all("started")) == 8
            await router.idle()


async def test_handoff_between_two_workers() -> None:
    hub = LocalHub()
    with running("prefill", hub) as prefill, running("decode", hub) as decode:
        async with connected(prefill, decode) as (p, d):
            await join(p, d)
            requests = [make_request(id, range(id, id + 30), max_tokens=9, deadline_s=on_clock(60)) for id in range(6)]
            for request in requests:
                p.send(Prefill(request))
                d.send(Adopt(request))
            await d.until(lambda: len(d.all("finished")) == 6)
            for request in requests:
                assert p.tokens[request.id] + d.tokens[request.id] == right_tokens(request)
            await p.idle()
            await d.idle()


async def test_more_handoffs_than_fit_with_cancels_in_between() -> None:
    """Pools of 24 pages, requests of 4 to 12: queues, preemption, quarantine; at the end every page is back."""
    hub, chance = LocalHub(), random.Random(7)
    with running("prefill", hub, num_pages=24) as prefill, running("decode", hub, num_pages=24) as decode:
        async with connected(prefill, decode) as (p, d):
            await join(p, d)
            requests = [
                make_request(
                    id,
                    range(id % 3, id % 3 + chance.randrange(10, 36)),
                    max_tokens=chance.randrange(2, 12),
                    deadline_s=on_clock(60),
                )
                for id in range(1, 81)
            ]
            cancelled = set()
            for request in requests:
                p.send(Prefill(request))
                d.send(Adopt(request))
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                    cancelled.add(victim := chance.randrange(1, request.id + 1))
                    p.send(Cancel(victim))
                    d.send(Cancel(victim))
            await d.until(lambda: all(d.finished(r.id) or d.failed(r.id) for r in requests))
            for failed in d.all("handoff_failed"):
                p.send(Cancel(failed.id))
            await p.idle()
            await d.idle()
            for request in requests:
                tokens, right = p.tokens[request.id] + d.tokens[request.id], right_tokens(request)
                done = d.finished(request.id) and d.finished(request.id)[0].reason is FinishReason.LENGTH
                assert tokens == (right if done else right[: len(tokens)])
                assert len(d.finished(request.id)) + len(d.failed(request.id)) == 1
            for request in requests:
                assert (
                    d.finished(request.id)
                    or request.id in cancelled
                    or "two tickets" in d.failed(request.id)[0].message
                )


async def test_workers_with_different_cluster_keys_refuse_each_other() -> None:
    hub = LocalHub()
    with running("prefill", hub) as prefill, running("decode", hub, key=b"another cluster's key") as decode:
        async with connected(prefill, decode) as (p, d):
            d.send(PeerJoined(p.info))
            await d.until(lambda: bool(d.all("peers")))
            (status,) = d.all("peers")
            assert not status.ready and "another cluster key" in status.message


async def test_each_router_hears_of_its_own_requests_and_all_hear_of_pages() -> None:
    with running("decode") as worker:
        async with connected(worker, worker) as (first, second):
            one, two = (make_request(id, range(id, id + 20), max_tokens=5, deadline_s=on_clock(60)) for id in (1, 2))
            first.send(SendPrefixes(), Generate(one))
            second.send(SendPrefixes(), Generate(two))
            await first.until(lambda: bool(first.finished(1)))
            await second.until(lambda: bool(second.finished(2)))
            assert set(first.tokens) == {1} and set(second.tokens) == {2}
            await second.until(lambda: len(first.pages) >= 10 and first.pages == second.pages)


async def test_requests_of_a_lost_router_are_cancelled() -> None:
    with running("decode", num_pages=64) as worker:
        async with connected(worker) as (stays,):
            leaves = RouterSession(worker.info.address)
            await leaves.open()
            leaves.send(
                *(Generate(make_request(id, range(200), max_tokens=50, deadline_s=on_clock(60))) for id in range(9))
            )
            await leaves.until(lambda: bool(leaves.all("started")))
            await leaves.close()
            await stays.idle()
            assert stays.all("finished") == []


async def test_a_router_cannot_touch_the_requests_of_another() -> None:
    with running("prefill") as worker:
        async with connected(worker, worker) as (owner, other):
            owner.send(Prefill(make_request(1, range(20), max_tokens=5, deadline_s=on_clock(60))))
            await owner.until(lambda: any(ticket.last for ticket in owner.all("tickets")))
            other.send(
                Cancel(1), Release(1), Generate(make_request(2, range(4), max_tokens=2, deadline_s=on_clock(60)))
            )
            await other.until(lambda: bool(other.finished(2)))
            seen = other.loads[-1].seq
            await other.until(lambda: other.loads[-1].seq > seen)
            assert other.loads[-1].free_pages == other.loads[-1].num_pages - 5
            owner.send(Release(1))
            await owner.idle()


async def test_prefixes_are_sent_again_on_request() -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            router.send(SendPrefixes(), Generate(make_request(1, range(20), max_tokens=2, deadline_s=on_clock(60))))
            await router.until(lambda: bool(router.finished(1)))
            late = RouterSession(worker.info.address)
            await late.open()
            late.send(SendPrefixes())
            await late.until(lambda: PagesCleared() in late.all("kv_events"))
            assert late.pages == router.pages and late.pages
            assert [f.kv_seq for f in late.frames if f.kv_events] == [max(f.kv_seq for f in router.frames)]
            seen = len(late.loads)
            await late.until(lambda: len(late.loads) > seen)
            assert late.loads[-1].view_digest == reduce(xor, page_keys(late.pages))
            await late.close()


async def test_an_idle_worker_reports_its_load() -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            await router.until(lambda: len({load.seq for load in router.loads}) >= 3)


class StuckExecutor:
    """A device that does not answer until it is let go; then it breaks."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def launch(self, plan: StepPlan) -> None:
        pass

    @property
    def ready(self) -> bool:
        return self.let_go.is_set()

    def when_ready(self, call: Callable[[], None]) -> None:
        self.wake = call

    def collect(self) -> StepOutput:
        raise RuntimeError("the device is gone")

    def close(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_comes_while_a_step_runs_is_handled_at_once() -> None:
    executor = StuckExecutor()
    with running("decode", executor=executor) as worker:
        async with connected(worker) as (router,):
            router.send(Generate(make_request(1, range(4), max_tokens=2, deadline_s=on_clock(60))))
            router.send(Generate(make_request(2, range(10**4), max_tokens=2, deadline_s=on_clock(60))))
            await router.until(lambda: bool(router.finished(2)))
            assert "10000 tokens" in router.finished(2)[0].message
            router.send(Cancel(1))
            await router.until(lambda: bool(router.finished(1)))
            assert router.finished(1)[0].reason is FinishReason.CANCELLED


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_stuck_engine_is_not_silent_and_a_dead_one_ends_the_worker() -> None:
    executor = StuckExecutor()
    with running("decode", executor=executor) as worker:
        async with connected(worker) as (router,):
            await router.until(lambda: bool(router.loads))
            router.send(Generate(make_request(1, range(4), max_tokens=2, deadline_s=on_clock(60))))
            await router.until(lambda: len(router.loads) > 3 and router.loads[-1].seq == router.loads[-3].seq)
            assert not worker.died
            executor.let_go.set()
            executor.wake()
            await router.lost()
            assert await asyncio.to_thread(worker.wait, TIMEOUT_S)
            assert worker.died


async def test_stop_ends_sessions_and_is_idempotent() -> None:
    worker = start_fake_worker("decode")
    async with connected(worker) as (router,):
        router.send(Generate(make_request(1, range(100), max_tokens=100, deadline_s=on_clock(60))))
        await router.until(lambda: bool(router.tokens))
        await asyncio.to_thread(worker.stop)
        await router.lost()
    worker.stop()
    assert worker.wait(0) and not worker.died
    assert not [t.name for t in threading.enumerate() if t.name in ("engine", "transfer", "worker-server")]


def test_a_taken_port_is_one_clear_error() -> None:
    with running("decode") as worker:
        port = int(worker.info.address.rpartition(":")[2])
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1, ports {port}"):
            start_fake_worker("decode", port=port)


async def test_health_and_reflection() -> None:
    with running("decode") as worker:
        async with grpc.aio.insecure_channel(worker.info.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "baton.v1.Worker"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
            answer = await anext(aiter(call))
            assert "baton.v1.Worker" in {service.name for service in answer.list_services_response.service}


async def test_metrics() -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            for id in (1, 2):
                router.send(Generate(make_request(id, range(24), max_tokens=4, deadline_s=on_clock(60))))
                await router.until(lambda id=id: bool(router.finished(id)))
            await router.idle()
        url = f"http://127.0.0.1:{worker.metrics_port}/metrics"
        text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["baton_worker_requests_total", ("length",)] == 2
    assert samples["baton_worker_generated_tokens_total", ()] == 8
    assert samples["baton_worker_prompt_tokens_total", ()] == 48
    assert samples["baton_worker_cached_tokens_total", ()] == 20
    assert samples["baton_worker_cache_hit_rate", ()] == pytest.approx(20 / 48)
    assert samples["baton_worker_response_seconds_count", ()] == 2
    assert samples["baton_worker_requests_open", ()] == 0
    pages = {labels[0]: value for (name, labels), value in samples.items() if name == "baton_worker_pages"}
    assert sum(pages.values()) == 64
    assert samples["baton_worker_kv_bytes", ("free",)] == pages["free"] * 32


@pytest.mark.parametrize("by_router", [True, False])
async def test_a_drained_worker_says_so_and_ends_when_it_is_empty(by_router: bool) -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            request = make_request(1, range(20), max_tokens=5, deadline_s=on_clock(60))
            router.send(Prefill(request))
            await router.until(lambda: any(ticket.last for ticket in router.all("tickets")))
            if by_router:
                router.send(Drain(60.0))
            else:
                worker.drain(60.0)
            await router.until(lambda: router.loads[-1].draining)
            seen = len(router.loads)
            await router.until(lambda: len(router.loads) - seen > 2 * QUIET_S / LOAD_INTERVAL_S)
            assert not worker.wait(0.0), "it holds pages for somebody"
            router.send(Release(1))
            await router.lost()
        assert await asyncio.to_thread(worker.wait, TIMEOUT_S)
        assert worker.drained and not worker.died


async def test_a_drain_ends_at_its_time_with_whatever_is_left() -> None:
    with running("decode") as worker:
        async with connected(worker) as (router,):
            router.send(Prefill(make_request(1, range(20), max_tokens=5, deadline_s=on_clock(60))))
            await router.until(lambda: any(ticket.last for ticket in router.all("tickets")))
            router.send(Drain(0.5))
            await router.lost()
        assert await asyncio.to_thread(worker.wait, TIMEOUT_S)
        assert worker.drained and not worker.died


async def test_only_who_knows_the_cluster_key_is_heard() -> None:
    with running("decode") as worker:
        for stranger in (WorkerClient(worker.info.address, key) for key in (b"", b"guessed")):
            with pytest.raises(WorkerLost, match="do not know the same cluster key"):
                await stranger.connect()
            await stranger.close()
        async with grpc.aio.insecure_channel(worker.info.address) as channel:
            assert await WorkerStub(channel).Session().code() == grpc.StatusCode.UNAUTHENTICATED
