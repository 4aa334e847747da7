"""What probes hear of a worker: by the observer alone, and over HTTP from a real shell."""

import urllib.error
import urllib.request
from dataclasses import replace

from engine.core.messages import PeerJoined, PeerStatus
from engine.core.types import WorkerLoad
from engine.server.readiness import STUCK_S, Readiness
from kv_transfer.transports.local import LocalHub
from tests.fakes.router_session import RouterSession
from tests.fakes.thread_worker import Worker, start_fake_worker

LOAD = WorkerLoad(1, 0.0, 0, 0, 0, 8, 8, 0.01, 0.0)
PEER = PeerStatus("prefill-0", 7, True, "nixl", 1e9)


class Clock:
    """Set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def ready(*peers: PeerStatus, num_routers: int = 1, load: WorkerLoad = LOAD) -> str:
    readiness = Readiness(Clock())
    readiness.loaded(load)
    readiness.connected(num_routers, peers)
    return readiness.why_not_ready()


def test_ready_is_a_session_and_a_page_from_every_peer() -> None:
    assert ready() == ready(PEER) == ""
    assert ready(num_routers=0) == "no router has a session with it"
    lost = replace(PEER, worker_id="prefill-1", ready=False, message="hung")
    assert ready(PEER, lost) == "cannot pull from prefill-1: hung"
    assert ready(PEER, load=replace(LOAD, draining=True)) == "it is leaving"


def test_an_engine_thread_that_says_nothing_is_dead() -> None:
    clock = Clock()
    readiness = Readiness(clock)
    clock.now_s += STUCK_S
    assert readiness.why_dead() == ""
    clock.now_s += 1.0
    assert "said nothing for 61 s" in readiness.why_dead() == readiness.why_not_ready()
    readiness.connected(1, ())
    assert readiness.why_dead() == readiness.why_not_ready() == ""


def get(worker: Worker, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.metrics_port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_a_real_worker_gets_ready_with_its_router_and_its_peer() -> None:
    hub = LocalHub()
    source, target = start_fake_worker("prefill", hub), start_fake_worker("decode", hub)
    router = RouterSession(target.info.address)
    try:
        assert get(target, "/live") == (200, "ok\n")
        assert get(target, "/ready") == (503, "no router has a session with it\n")
        await router.open()
        stranger = replace(source.info, id="elsewhere", incarnation=1, layout=replace(source.info.layout, head_dim=3))
        router.send(PeerJoined(source.info), PeerJoined(stranger))
        await router.until(lambda: len(router.all("peers")) == 2 and bool(router.loads))
        seen = len(router.loads)
        await router.until(lambda: len(router.loads) > seen + 1)
        code, why = get(target, "/ready")
        assert code == 503 and why.startswith("cannot pull from elsewhere: ") and source.info.id not in why
        _, page = get(target, "/metrics")
        assert 'baton_worker_peer_ready{peer="prefill-0"} 1.0' in page
        assert 'baton_worker_peer_ready{peer="elsewhere"} 0.0' in page and "baton_worker_routers 1.0" in page
    finally:
        await router.close()
        target.stop()
        source.stop()


async def test_peers_of_a_router_that_is_gone_do_not_count() -> None:
    with_peer = start_fake_worker("decode")
    try:
        first = RouterSession(with_peer.info.address)
        await first.open()
        first.send(PeerJoined(replace(with_peer.info, id="gone", incarnation=3)))
        await first.until(lambda: bool(first.all("peers")))
        await first.close()
        second = RouterSession(with_peer.info.address)
        await second.open()
        await second.until(lambda: len(second.loads) > 2)
        assert get(with_peer, "/ready") == (200, "ok\n")
        await second.close()
    finally:
        with_peer.stop()
