"""One log line when a request ends here: failures as warnings, the rest for whoever turns on DEBUG."""

import logging
from collections.abc import Sequence

from engine.core.messages import Adopted, Finished, HandoffFailed, PeerStatus
from engine.core.types import FinishReason, Request, WorkerLoad
from engine.server.role import Ended, RequestWord

logger = logging.getLogger(__name__)


class RequestLog:
    """An observer of the engine loop. `request_id` is the client's, `attempt` what router and workers call it."""

    def __init__(self) -> None:
        self._open: dict[int, Request] = {}

    def submitted(self, request: Request) -> None:
        """A session submitted a request."""
        self._open[request.id] = request

    def said(self, word: RequestWord, now: float) -> None:
        """The role said something of a request."""
        match word:
            case Finished(id, reason, message):
                failed = reason is FinishReason.ERROR
                self._ended(id, f"finished reason={reason}" + (f": {message}" if message else ""), now, failed)
            case HandoffFailed(id, message):
                self._ended(id, f"handoff failed: {message}", now, failed=True)
            case Ended(id, how):
                self._ended(id, how, now)
            case Adopted(id, transfer_bytes, transfer_s):
                request = self._open.get(id)
                if request is not None:
                    line = "request_id=%s attempt=%016x adopted bytes=%d transfer_ms=%.1f"
                    logger.debug(line, request.request_id, id, transfer_bytes, transfer_s * 1000)
            case _:
                pass

    def stepped(self, num_rows: int, wall_s: float) -> None:
        """Steps are not logged."""

    def loaded(self, load: WorkerLoad) -> None:
        """Loads are not logged."""

    def connected(self, num_routers: int, peers: Sequence[PeerStatus]) -> None:
        """Sessions are logged where they are served."""

    def _ended(self, id: int, how: str, now: float, failed: bool = False) -> None:
        request = self._open.pop(id, None)
        if request is not None:
            level = logging.WARNING if failed else logging.DEBUG
            line = "request_id=%s attempt=%016x tokens=%d seconds=%.3f %s"
            logger.log(level, line, request.request_id, id, len(request.tokens), now - request.arrival_s, how)
