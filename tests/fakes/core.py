"""An EngineCore over the fake executor, and what its requests got."""

from array import array
from collections import defaultdict
from collections.abc import Sequence

from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore, FinalPages, Reserved, StepResult
from engine.core.messages import Finished, Started
from engine.core.types import Grammar, Request, Sampling
from tests.fakes.executor import FakeExecutor, expected_tokens


def make_request(id: int, tokens: Sequence[int], **changes: object) -> Request:
    """A request with sensible values for all that a test does not care about. Sampling fields go in by name too."""
    request: dict[str, object] = {"num_prompt": len(tokens), "arrival_s": 0.0, "deadline_s": 1e9}
    sampling = {name: changes.pop(name) for name in list(changes) if name in Sampling.__slots__}
    return Request(id=id, tokens=array("i", tokens), sampling=Sampling(**sampling), **(request | changes))  # type: ignore[arg-type]


class CoreBench:
    """Runs a core step by step and keeps everything that it reports."""

    def __init__(
        self,
        *,
        page_size: int = 4,
        num_pages: int = 64,
        max_model_len: int = 1000,
        max_step_tokens: int = 64,
        max_rows: int = 8,
        max_in_flight: int = 2,
        max_queued: int = 100,
    ) -> None:
        self.config = SchedulerConfig(
            page_size, num_pages, max_model_len, max_step_tokens, max_rows, max_in_flight, max_queued
        )
        self.executor = FakeExecutor(page_size, num_pages, max_rows, max_step_tokens)
        self.uncompiled: set[Grammar] = set()
        self.asked: list[Grammar] = []
        """Whether they are compiled."""
        self.generations = array("Q", bytes(8 * num_pages))
        self.core = EngineCore(self.config, self.executor, generations=self.generations, is_compiled=self._is_compiled)
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.finished: dict[int, Finished] = {}
        self.started: dict[int, Started] = {}
        self.final: dict[int, list[FinalPages]] = defaultdict(list)
        self.reserved: dict[int, Reserved] = {}
        self.results: list[StepResult] = []

    def _is_compiled(self, grammar: Grammar) -> bool:
        self.asked.append(grammar)
        return grammar not in self.uncompiled

    def step(self, now: float = 0.0) -> StepResult:
        """One step; takes in what it reports and checks every invariant."""
        result = self.core.step(now)
        self.core.check_integrity()
        self.results.append(result)
        for id, token in zip(result.ids, result.tokens, strict=True):
            self.tokens[id].append(token)
        for finished in result.finished:
            assert finished.id not in self.finished, "finished twice"
            self.finished[finished.id] = finished
        for started in result.started:
            assert started.id not in self.started, "started twice"
            self.started[started.id] = started
        for final in result.final_pages:
            self.final[final.id].append(final)
        self.reserved |= {reserved.id: reserved for reserved in result.reserved}
        return result

    def run(self, now: float = 0.0, max_steps: int = 1000) -> int:
        """Step until there is nothing to do; returns how many steps that took."""
        for count in range(max_steps):
            if not self.core.has_work:
                return count
            self.step(now)
        raise AssertionError("never idle")

    def expected(self, request: Request) -> list[int]:
        """What the request would get were it alone."""
        return expected_tokens(list(request.tokens), request.num_prompt, request.sampling, self.core.max_model_len)

    def pages(self) -> dict[str, int]:
        """Pages by state, states without pages left out."""
        return {state: count for state, count in self.core.pages_by_state().items() if count}
