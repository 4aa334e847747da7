"""The engine core: every page and every request of one worker, without knowing which role it plays."""

from collections.abc import MutableSequence, Sequence

from engine.core.config import SchedulerConfig
from engine.core.executor import Executor
from engine.core.messages import KVEvent
from engine.core.result import FinalPages, Reserved, StepResult
from engine.core.types import Request, WorkerLoad

__all__ = ["EngineCore", "FinalPages", "Reserved", "StepResult"]


class EngineCore:
    """Extends requests by steps. All times are `now`, seconds on the worker's own clock."""

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        *,
        model_hash: str = "",
        generations: MutableSequence[int] | None = None,
    ) -> None:
        """`generations`: one unsigned 64-bit counter a page, in memory that peers can read; own memory when None."""

    # ------------------------------------------------------------ requests

    def submit(self, request: Request, now: float, *, hold: bool = False) -> None:
        """Queue a request. `hold`: draw one token, announce FinalPages as they come, then keep the pages leased.

        A held request that truly ends with that token (stop, length) is reported Finished and holds nothing.

        Raises:
            InvalidRequest: it can never run here; the message says why.
            Overloaded: the queue is full.
        """
        raise NotImplementedError

    def abort(self, id: int) -> bool:
        """End a request at any moment and free what it holds, a held lease too. False when the id is unknown."""
        raise NotImplementedError

    def release(self, id: int) -> bool:
        """The handoff of a held request is over: its pages go to the cache. Idempotent; False when not held."""
        raise NotImplementedError

    # ------------------------------------------------------------ incoming handoffs

    def reserve(self, request: Request, now: float) -> None:
        """Queue for destination pages of all of `request.tokens`; answered by StepResult.reserved. Raises as submit."""
        raise NotImplementedError

    def fill(self, id: int) -> bool:
        """A transfer into the reserved pages is about to be posted. False: the request is over, do not post it."""
        raise NotImplementedError

    def settle(self, id: int) -> None:
        """One transfer of `id` is terminal: it writes no more. Exactly once for each `fill` that was True."""
        raise NotImplementedError

    def prove(self, id: int, num_tokens: int) -> bool:
        """The pages of the first `num_tokens` tokens are proven (full pages become shareable). False: it is over."""
        raise NotImplementedError

    def adopt(self, id: int, emitted: Sequence[int]) -> bool:
        """The handoff is over: append the tokens drawn elsewhere and go on from what is proven, all or less.

        With transfers still in flight the pages are quarantined and the request is computed in others.
        False: the request is over.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ the loop

    @property
    def has_work(self) -> bool:
        """False: `step` can do nothing before the next call of another method or `next_deadline_s`."""
        raise NotImplementedError

    def next_deadline_s(self) -> float | None:
        """When the next request or lease runs out of time, None when there is none."""
        raise NotImplementedError

    def step(self, now: float) -> StepResult:
        """Launch the next plan if there is one, then commit the oldest step unless the device could do with more."""
        raise NotImplementedError

    def launch(self, now: float) -> bool:
        """Plan and launch one step, if there is room in flight and anything to compute. For own loops (simulator)."""
        raise NotImplementedError

    def commit(self, now: float) -> StepResult:
        """Collect the oldest launched step, if any, and report all that happened. For own loops (simulator)."""
        raise NotImplementedError

    # ------------------------------------------------------------ views

    def load(self, now: float) -> WorkerLoad:
        """How busy this worker is."""
        raise NotImplementedError

    def drain_events(self) -> list[KVEvent]:
        """Changes of the prefix cache since the last call, in order."""
        raise NotImplementedError

    def stored_pages(self) -> list[KVEvent]:
        """The whole prefix cache as PagesStored events, parents first: what a router needs to resynchronize."""
        raise NotImplementedError

    def pages_by_state(self) -> dict[str, int]:
        """free, cached, leased, reserved, filling, quarantined; they add up to num_pages."""
        raise NotImplementedError

    def check_integrity(self) -> None:
        """Recompute the truth from every owner; AssertionError says which invariant broke."""
        raise NotImplementedError
