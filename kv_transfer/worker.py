"""Assembles a worker: engine, transfer thread, role and the shell around them. Workers differ in what they announce."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from engine.core.types import WorkerInfo
from engine.models.loader import Progress
from engine.runtime.build import Engine, build_engine
from engine.server.config import WorkerConfig
from engine.server.heap import keep_what_is_loaded
from engine.server.inbox import Inbox
from engine.server.worker import RunningWorker, WorkerParts, new_incarnation
from kv_transfer.api import TransferCommand, TransferOutcome
from kv_transfer.holding import TicketSealer
from kv_transfer.manager import TransferManager
from kv_transfer.role import WorkerRole
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.choose import open_transports

Worker = RunningWorker[TransferCommand, TransferOutcome]


def run_worker(config: WorkerConfig, roles: tuple[str, ...], progress: Progress | None = None) -> Worker:
    """Load the model and serve. Returns when routers can connect; may be called from any thread.

    `roles` are what the worker asks routers to use it for; it can do everything.

    Raises:
        BatonError: the model cannot be served, the settings do not fit, or a port cannot be listened on.
    """
    engine = build_engine(config.engine, progress)
    try:
        return serve_engine(engine, config, roles, close_engine=engine.close)
    except BaseException:
        engine.close()
        raise


def serve_engine(
    engine: Engine, config: WorkerConfig, roles: tuple[str, ...], close_engine: Callable[[], None]
) -> Worker:
    """Serve with an engine that has its model already, as a new incarnation. See `run_worker`.

    Nobody else may use the engine until the worker has ended; then `close_engine` is called. The engine's cache may
    hold what an earlier incarnation computed, but no request and no lease.
    """
    incarnation, inbox, key = new_incarnation(), Inbox(), config.cluster_key
    with ExitStack() as undo:
        name = peer_key(config.worker_id, incarnation)
        bind = f"{config.host}:{config.page_port}"
        transports = open_transports(config.transport, engine.pool, name, key, bind, config.advertise, config.tls)
        manager = TransferManager(engine.pool, transports, (config.worker_id, incarnation), key, notify=inbox.wake)
        undo.callback(manager.close)
        role = WorkerRole(engine.core, TicketSealer(config.worker_id, incarnation, engine.pool.layout, key))
        info = _describe(config, engine, roles, incarnation, manager.descriptors)
        worker = RunningWorker(config, WorkerParts(info, engine.core, role, manager, inbox, close_engine))
        undo.pop_all()
    keep_what_is_loaded()
    return worker


def _describe(
    config: WorkerConfig,
    engine: Engine,
    roles: tuple[str, ...],
    incarnation: int,
    transports: tuple[tuple[str, bytes], ...],
) -> WorkerInfo:
    """What the worker says of itself; the shell fills in the address."""
    return WorkerInfo(
        id=config.worker_id,
        incarnation=incarnation,
        roles=roles,
        address="",
        model=config.model_name or Path(config.engine.model).name,
        layout=engine.pool.layout,
        num_pages=engine.pool.num_pages,
        max_model_len=engine.core.max_model_len,
        transports=transports,
        topology=config.topology,
        version=metadata.version("baton"),
    )
