"""One attempt at one call: which workers have a leg of it, and the promise that each leg is settled once."""

from engine.core.messages import Cancel, Command, Release, Started
from router.cost_model import Work
from router.events import Effect, Send
from router.policies.base import RouteDecision
from router.worker import LegKind, WorkerState


class Leg:
    """What one worker does for one attempt, from the moment it is sent until it ended there or was told to end."""

    __slots__ = ("attempt", "kind", "open", "worker")

    def __init__(self, attempt: int, worker: WorkerState, kind: LegKind) -> None:
        self.attempt = attempt
        self.worker = worker
        self.kind = kind
        self.open = False

    def start(self, command: Command, work: Work, now: float) -> Effect:
        """Send the command that begins the leg, and that computes the new tokens of `work`."""
        self.worker.open_leg(self.attempt, self.kind, now, work)
        self.open = True
        return Send(self.worker.key, command)

    def ended(self) -> None:
        """The worker said that nothing of it is left, or the worker is gone."""
        if self.open:
            self.open = False
            self.worker.close_leg(self.attempt)

    def end(self, command: Command) -> list[Effect]:
        """Tell the worker to end it, if that has not been done."""
        if not self.open:
            return []
        self.ended()
        return [Send(self.worker.key, command)]


class Attempt:
    """A route under way. Its id is new, so nothing late of another attempt is mistaken for it.

    A pair has two legs; a request that stays on one worker has only `decode`, of kind WHOLE.
    """

    __slots__ = ("decision", "decode", "expected", "first_token_s", "id", "prefill", "sent_s", "started", "work")

    def __init__(self, attempt: int, decision: RouteDecision, workers: dict[str, WorkerState]) -> None:
        self.id = attempt
        self.decision = decision
        pair = decision.prefill is not None
        self.prefill = Leg(attempt, workers[decision.prefill], LegKind.PREFILL) if decision.prefill else None
        self.decode = Leg(attempt, workers[decision.decode], LegKind.DECODE if pair else LegKind.WHOLE)
        self.sent_s = 0.0
        self.work = Work(0, 0, 0)
        """Where the prompt is computed, as expected when it was sent."""
        self.expected: tuple[bytes, ...] = ()
        """Pages that count as cached where the prompt is computed, until it has been."""
        self.started: Started | None = None
        self.first_token_s: float | None = None

    @property
    def computes(self) -> Leg:
        """The leg that the first token comes from."""
        return self.prefill or self.decode

    def leg_on(self, worker: str) -> Leg | None:
        """The open leg on that incarnation."""
        for leg in (self.prefill, self.decode):
            if leg is not None and leg.open and leg.worker.key == worker:
                return leg
        return None

    def release_prefill(self) -> list[Effect]:
        """The handoff is over, or none is needed: the prefill worker may let its pages go."""
        return self.prefill.end(Release(self.id)) if self.prefill else []

    def settle(self) -> list[Effect]:
        """End whatever is still open."""
        effects = self.prefill.end(Cancel(self.id)) if self.prefill else []
        return effects + self.decode.end(Cancel(self.id))
