"""Runs many sequences on an engine in the calling thread, as fast as the engine steps."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from threading import Event

from engine.core.engine import EngineCore, StepResult
from engine.core.errors import Overloaded, Unavailable
from engine.core.messages import Finished
from engine.core.types import FinishReason, Request, TokenLogprob
from router.api import Delta
from router.doors.session import Answer, Choice


@dataclass(slots=True)
class _Row:
    """One sequence on its way."""

    choice: Choice
    answer: Answer = field(default_factory=Answer)
    cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


class Driver:
    """Owns the requests of one engine core between its calls. Not for several threads at once."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._ids = count(1)
        self._rows: dict[int, _Row] = {}
        self._woken = Event()
        core.when_ready(self._woken.set)

    def run(self, choices: Sequence[Choice]) -> list[Answer]:
        """All answers, in the order of `choices`. Whatever is raised, nothing of them is left in the engine."""
        waiting = deque(_Row(choice) for choice in choices)
        answers = [row.answer for row in waiting]
        try:
            while waiting or self._rows:
                self._woken.clear()
                self._submit(waiting)
                self._take(self._core.step(time.monotonic()))
                if self._rows and not self._core.has_work:  # a grammar is being compiled
                    self._woken.wait()
        finally:
            for id in list(self._rows):
                self._core.abort(id)
            self._rows.clear()
            while self._core.has_work:  # steps that are still on the device
                self._core.step(time.monotonic())
        return answers

    def _submit(self, waiting: deque[_Row]) -> None:
        """As many as the engine's queue takes."""
        now = time.monotonic()
        while waiting:
            call = waiting[0].choice.call
            id = next(self._ids)
            try:
                self._core.submit(Request(id, call.tokens, len(call.tokens), call.sampling, now, inf))
            except Overloaded:
                return
            self._rows[id] = waiting.popleft()

    def _take(self, result: StepResult) -> None:
        for started in result.started:
            if started.id in self._rows:
                self._rows[started.id].cached_tokens = started.cached_tokens
        for id, values in result.prompt_logprobs:
            if id in self._rows:
                self._rows[id].prompt_logprobs += values
        ends = {finished.id: finished for finished in result.finished}
        for place, (id, token) in enumerate(zip(result.ids, result.tokens, strict=True)):
            row = None if result.logprobs is None else result.logprobs[place]
            self._advance(id, (token,), () if row is None else (row,), ends.pop(id, None))
        for id, end in ends.items():
            self._advance(id, (), (), end)

    def _advance(
        self, id: int, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], end: Finished | None
    ) -> None:
        row = self._rows.get(id)
        if row is None:  # a stop string ended it before the engine knew
            return
        if end is not None and end.reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise Unavailable(f"a request ended early: {end.reason} {end.message}")
        delta = Delta(
            tokens,
            logprobs,
            tuple(row.prompt_logprobs),
            row.cached_tokens,
            None if end is None else end.reason,
            None if end is None else end.stop_token,
        )
        row.prompt_logprobs, row.cached_tokens = [], None
        out = row.choice.show(delta)
        row.answer.add(out)
        if out.finish is not None:
            del self._rows[id]
            if end is None:
                self._core.abort(id)
