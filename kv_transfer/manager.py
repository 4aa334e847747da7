"""The thread that owns the transports of one worker. Nothing is posted or polled in the engine loop."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from engine.core.errors import TransferFailed, Unauthenticated
from kv_transfer.api import JoinPeer, PeerReady, PeerRefused, TransferCommand, TransferOutcome
from kv_transfer.core import TransferCore
from kv_transfer.peer import PeerConfig
from kv_transfer.transports.base import PagePool, Transport, peer_key
from kv_transfer.transports.seal import open_descriptors, seal_descriptors

logger = logging.getLogger(__name__)

TICK_S = 0.01
MIN_POLL_S, MAX_POLL_S = 20e-6, 1e-3


class TransferManager:
    """Commands in from any thread, outcomes out to one.

    While reads are in flight the thread polls with pauses that grow from 20 us to 1 ms; while handoffs or proofs are
    open it looks at the clock every 10 ms; otherwise it sleeps until a command comes.
    """

    def __init__(
        self,
        pool: PagePool,
        transports: Sequence[Transport],
        worker: tuple[str, int],
        key: bytes,
        config: PeerConfig | None = None,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            transports: in order of preference; the manager's thread owns them from here on.
            worker: this worker's (id, incarnation).
            key: the cluster key: at least 16 bytes.
            notify: called from the manager's thread after outcomes were added; must only wake somebody.
        """
        self._name = peer_key(*worker)
        self._key = key
        self._descriptors = seal_descriptors(transports, self._name, key)
        self._core = TransferCore(pool, transports, self._name, key, config)
        self._notify = notify
        self._inbox: SimpleQueue[TransferCommand | None] = SimpleQueue()
        self._outbox: SimpleQueue[TransferOutcome] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self._thread.start()

    @property
    def descriptors(self) -> tuple[tuple[str, bytes], ...]:
        """WorkerInfo.transports of this worker: readable with the cluster key only."""
        return self._descriptors

    def submit(self, command: TransferCommand) -> None:
        """Hand over a command; returns at once."""
        self._inbox.put(command)

    def outcomes(self) -> list[TransferOutcome]:
        """What happened since the last call, in order; never waits.

        Raises:
            TransferFailed: the thread is gone without having been closed; its error was printed. The worker must end.
        """
        outcomes = []
        while not self._outbox.empty():
            outcomes.append(self._outbox.get())
        if not outcomes and not self._thread.is_alive():
            raise TransferFailed("the transfer thread is gone")
        return outcomes

    def close(self) -> None:
        """End the thread and close the transports: afterwards no memory is touched. Idempotent."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self._core.close()
            self._notify()

    def _loop(self) -> None:
        core, pause_s, next_tick_s = self._core, MIN_POLL_S, 0.0
        while True:
            timeout = None if core.idle else pause_s if core.reading else TICK_S
            if not self._take_commands(timeout):
                return
            now = time.monotonic()
            if core.poll(now):
                pause_s = MIN_POLL_S
            else:
                pause_s = min(1.5 * pause_s, MAX_POLL_S)
            if now >= next_tick_s:
                core.tick(now)
                next_tick_s = now + TICK_S
            self._publish()

    def _take_commands(self, timeout: float | None) -> bool:
        """Wait for a command, then handle all that are there. False: asked to end."""
        try:
            command = self._inbox.get(timeout=timeout)
            while True:
                if command is None:
                    return False
                self._handle(command)
                command = self._inbox.get_nowait()
        except Empty:
            return True

    def _handle(self, command: TransferCommand) -> None:
        if isinstance(command, JoinPeer):
            info = command.info
            try:
                opened = open_descriptors(info.transports, peer_key(info.id, info.incarnation), self._key)
            except Unauthenticated as error:
                self._refuse(PeerRefused(info.id, info.incarnation, error.message, permanent=True))
                return
            command = JoinPeer(replace(info, transports=opened))
        self._core.handle(command, time.monotonic())

    def _refuse(self, refused: PeerRefused) -> None:
        _log_peer(self._name, refused)
        self._outbox.put(refused)
        self._notify()

    def _publish(self) -> None:
        outcomes = self._core.take_outcomes()
        for outcome in outcomes:
            if isinstance(outcome, PeerReady | PeerRefused):
                _log_peer(self._name, outcome)
            self._outbox.put(outcome)
        if outcomes:
            self._notify()


def _log_peer(name: str, outcome: PeerReady | PeerRefused) -> None:
    peer = peer_key(outcome.worker_id, outcome.incarnation)
    if isinstance(outcome, PeerRefused):
        logger.warning("%s pulls nothing from %s: %s", name, peer, outcome.message)
        return
    why = f", not over {outcome.message}" if outcome.message else ""
    rate = outcome.bytes_per_s / 1e9
    logger.info("%s pulls from %s over %s (%.2f GB/s measured)%s", name, peer, outcome.transport, rate, why)
