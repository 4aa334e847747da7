"""Assembles a worker: engine, transfer thread, role and the shell around them. What differs is the role alone."""

from collections.abc import Callable
from contextlib import ExitStack

from engine.models.loader import Progress
from engine.runtime.build import Engine, build_engine
from engine.server.config import WorkerConfig
from engine.server.inbox import Inbox
from engine.server.role import Role
from engine.server.worker import RunningWorker, WorkerParts, describe, new_incarnation
from kv_transfer.api import TransferCommand, TransferOutcome
from kv_transfer.manager import TransferManager
from kv_transfer.transports.base import peer_key
from kv_transfer.transports.choose import open_transports

Worker = RunningWorker[TransferCommand, TransferOutcome]
WorkerRole = Role[TransferCommand, TransferOutcome]
MakeRole = Callable[[Engine, int], WorkerRole]
"""From the engine and the incarnation."""


def run_worker(config: WorkerConfig, make_role: MakeRole, progress: Progress | None = None) -> Worker:
    """Load the model and serve. Returns when routers can connect; may be called from any thread.

    Raises:
        BatonError: the model cannot be served, the settings do not fit, or a port cannot be listened on.
    """
    incarnation, inbox, key = new_incarnation(), Inbox(), config.cluster_key
    with ExitStack() as undo:
        engine = build_engine(config.engine, progress)
        undo.callback(engine.close)
        name = peer_key(config.worker_id, incarnation)
        transports = open_transports(config.transport, engine.pool, name, key, config.host, config.advertise)
        manager = TransferManager(engine.pool, transports, (config.worker_id, incarnation), key, notify=inbox.wake)
        undo.callback(manager.close)
        role = make_role(engine, incarnation)
        info = describe(config, engine, role.name, incarnation, manager.descriptors)
        worker = RunningWorker(config, WorkerParts(info, engine.core, role, manager, inbox, engine.close))
        undo.pop_all()
    return worker
