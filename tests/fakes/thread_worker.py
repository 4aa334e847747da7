"""Workers with real threads, sockets and transfer managers, over integers for KV: the whole shell without torch."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.executor import Executor
from engine.core.types import WorkerInfo
from engine.runtime.config import EngineConfig
from engine.server.config import WorkerConfig
from engine.server.inbox import Inbox
from engine.server.worker import RunningWorker, WorkerParts, new_incarnation
from kv_transfer.api import TransferCommand, TransferOutcome
from kv_transfer.holding import TicketSealer
from kv_transfer.host_pool import HostPool
from kv_transfer.manager import TransferManager
from kv_transfer.role import WorkerRole
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.local import LocalHub, LocalTransport
from tests.fakes.virtual_worker import KEY, MAX_MODEL_LEN, PAGE_SIZE, executor_over, int64_layout

Worker = RunningWorker[TransferCommand, TransferOutcome]


def config_of(worker_id: str, port: int = 0) -> WorkerConfig:
    return WorkerConfig(EngineConfig(model=str(Path("tiny"))), worker_id, KEY, port=port)


def start_fake_worker(
    kind: str,
    hub: LocalHub | None = None,
    *,
    worker_id: str = "",
    num_pages: int = 64,
    executor: Executor | None = None,
    key: bytes = KEY,
    **settings: Any,
) -> Worker:
    """A worker that serves. `executor` takes the place of the right one; `settings` are fields of WorkerConfig."""
    config = replace(config_of(worker_id or f"{kind}-0"), **settings)
    layout, incarnation, inbox = int64_layout(), new_incarnation(), Inbox()
    pool = HostPool(layout, num_pages)
    name = peer_key(config.worker_id, incarnation)
    transport = LocalTransport(hub or LocalHub(), name, pool)
    manager = TransferManager(pool, [transport], (config.worker_id, incarnation), key, notify=inbox.wake)
    scheduler = SchedulerConfig(PAGE_SIZE, num_pages, MAX_MODEL_LEN, max_step_tokens=16, max_rows=16)
    core = EngineCore(
        scheduler, executor or executor_over(pool), model_hash="model", generations=pool.generations[:num_pages]
    )
    role = WorkerRole(core, TicketSealer(config.worker_id, incarnation, layout, key))
    info = WorkerInfo(
        config.worker_id,
        incarnation,
        (kind,),
        "",
        "tiny",
        layout,
        num_pages,
        MAX_MODEL_LEN,
        manager.descriptors,
    )
    return RunningWorker(config, WorkerParts(info, core, role, manager, inbox, lambda: None))


def on_clock(seconds: float) -> float:
    """A deadline for requests that a WorkerClient sends."""
    return time.monotonic() + seconds
