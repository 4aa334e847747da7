"""A lost page is counted, logged once and exported, and serving goes on."""

from prometheus_client import generate_latest

from engine.core.messages import Generate
from engine.core.result import StepResult
from engine.core.types import WorkerInfo
from engine.server.dispatch import LOAD_INTERVAL_S, Dispatch, DispatchPorts
from engine.server.inbox import Received, SessionOpened
from engine.server.metrics import WorkerMetrics
from kv_transfer.holding import TicketSealer
from kv_transfer.role import WorkerRole
from tests.fakes.core import CoreBench, make_request
from tests.fakes.virtual_worker import int64_layout


def test_a_lost_page_is_counted_once_and_serving_goes_on() -> None:
    bench, layout, log = CoreBench(page_size=4), int64_layout(), []
    metrics = WorkerMetrics(WorkerInfo("w", 1, ("decode",), "", "m", layout, 64, 256))
    role = WorkerRole(bench.core, TicketSealer("w", 1, layout, bytes(16)))
    dispatch = Dispatch(bench.core, role, DispatchPorts(lambda _command: None, log.append, (metrics,)))
    dispatch.on_event(SessionOpened(1), 0.0)
    dispatch.on_result(StepResult(), 0.0)
    bench.core._kv._allocator._free.pop()
    for turn in range(1, 5):
        dispatch.on_result(StepResult(), turn * LOAD_INTERVAL_S)
    assert len(log) == 1 and "63 of 64 pages" in log[0]
    text = generate_latest(metrics.registry).decode()
    assert "baton_page_conservation_failures_total 1.0" in text
    ((_, frame),) = dispatch.take_frames()
    assert frame.load is not None and frame.load.num_page_faults == 1
    dispatch.on_event(Received(1, Generate(make_request(1, range(8), max_tokens=2))), 1.0)
    while not any(frame.finished for _, frame in dispatch.take_frames()):
        dispatch.on_result(bench.core.step(1.0), 1.0)


def test_ages_are_exported() -> None:
    bench = CoreBench(page_size=4)
    metrics = WorkerMetrics(WorkerInfo("w", 1, ("decode",), "", "m", int64_layout(), 64, 256))
    bench.core.submit(make_request(1, range(10), max_tokens=5), hold=True)
    bench.run()
    for now in (1.0, 4.5):
        metrics.loaded(bench.core.load(now))
    text = generate_latest(metrics.registry).decode()
    assert 'baton_worker_page_oldest_seconds{state="leased"} 3.5' in text
    assert 'baton_worker_pages{state="shared"} 2.0' in text
