"""When the engine thread launches: late enough that who comes meanwhile is in the next step, early enough for no gap.

Real thread, the test's own clock: steps end when the test says so.
"""

import queue
from collections.abc import Callable, Iterator, Sequence

import pytest

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.messages import Adopt, DeliverTicket, Frame
from engine.core.types import StepOutput, StepPlan
from engine.server.inbox import Inbox, Received, SessionOpened
from engine.server.loop import AHEAD_S, AHEAD_SHARE, EngineLoop, LoopPorts
from kv_transfer.api import OpenHandoff, TransferCommand, TransferOutcome
from kv_transfer.holding import TicketSealer
from kv_transfer.role import WorkerRole
from tests.fakes.core import make_request
from tests.fakes.executor import FakeExecutor
from tests.fakes.virtual_worker import KEY, int64_layout

WAIT_S = 20.0
STEP_S = 10.0


class HeldExecutor(FakeExecutor):
    """Steps run until `end`, and took STEP_S then."""

    def __init__(self) -> None:
        super().__init__(page_size=4, num_pages=64)
        self.launched: queue.SimpleQueue[StepPlan] = queue.SimpleQueue()
        self.num_ended = 0
        self.wake: Callable[[], None] = lambda: None

    def launch(self, plan: StepPlan) -> None:
        super().launch(plan)
        self.launched.put(plan)

    def end(self) -> None:
        self.num_ended += 1
        self.wake()

    @property
    def ready(self) -> bool:
        return self.num_ended > 0

    def when_ready(self, call: Callable[[], None]) -> None:
        self.wake = call

    def collect(self) -> StepOutput:
        assert self.num_ended, "the engine thread waits for a step"
        self.num_ended -= 1
        output = super().collect()
        output.step_s = STEP_S
        return output


class Stage:
    """A loop, what goes into it and what comes out. `now` is its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.executor = HeldExecutor()
        self.core = EngineCore(SchedulerConfig(page_size=4, num_pages=64, max_model_len=200), self.executor)
        self.inbox = Inbox()
        self.commands: queue.SimpleQueue[TransferCommand] = queue.SimpleQueue()
        role = WorkerRole(self.core, TicketSealer("decode-0", 1, int64_layout(), KEY))
        ports: LoopPorts[TransferCommand, TransferOutcome] = LoopPorts(
            deliver=self._deliver,
            transfers=self,
            observers=(),
            feed=None,
            died=lambda: None,
            drained=lambda: None,
            clock=lambda: self.now,
        )
        self.loop = EngineLoop(self.core, role, ports, self.inbox)

    def submit(self, command: TransferCommand) -> None:
        self.commands.put(command)

    def outcomes(self) -> Sequence[TransferOutcome]:
        return ()

    def close(self) -> None:
        pass

    def _deliver(self, frames: list[tuple[int, Frame]]) -> None:
        pass

    def launched(self) -> int:
        """Number of the next step that is launched."""
        return self.executor.launched.get(timeout=WAIT_S).step_id


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.core.submit(make_request(1, [1, 2, 3, 4], max_tokens=100))
    stage.loop.start()
    yield stage
    stage.executor.num_ended = 1000
    assert stage.loop.stop(WAIT_S)


def to_steady_decode(stage: Stage) -> None:
    """Step 2 runs since 110.0, nothing else is launched, and a step of decode is known to take STEP_S."""
    assert (stage.launched(), stage.launched()) == (0, 1)  # a prompt, then a first step of decode: nothing is known
    stage.executor.end()
    assert stage.launched() == 2
    stage.now += STEP_S
    stage.executor.end()


def handoff_opens(stage: Stage) -> None:
    """Pages are reserved and the transfer is told: the loop has had a turn."""
    stage.inbox.post(SessionOpened(7))
    stage.inbox.post(Received(7, Adopt(make_request(2, list(range(9)), max_tokens=4))))
    stage.inbox.post(Received(7, DeliverTicket(2, b"nobody reads it here")))
    assert isinstance(stage.commands.get(timeout=WAIT_S), OpenHandoff)


def test_the_next_step_is_launched_shortly_before_the_running_one_ends(stage: Stage) -> None:
    to_steady_decode(stage)
    handoff_opens(stage)
    assert stage.executor.launched.empty() and stage.core.num_in_flight == 1
    stage.now = 110.0 + STEP_S - max(AHEAD_S, AHEAD_SHARE * STEP_S)
    stage.inbox.wake()
    assert stage.launched() == 3


def test_a_step_that_ends_early_is_followed_at_once(stage: Stage) -> None:
    to_steady_decode(stage)
    handoff_opens(stage)
    assert stage.executor.launched.empty()
    stage.executor.end()
    assert stage.launched() == 3


def test_pages_are_reserved_while_steps_are_launched_ahead(stage: Stage) -> None:
    assert (stage.launched(), stage.launched()) == (0, 1)
    handoff_opens(stage)
    assert stage.core.num_in_flight == 2
