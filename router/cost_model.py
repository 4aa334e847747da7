"""What things take here, in milliseconds, learned from what happened: prefill, transfer, a decode step, an answer."""

from collections.abc import Hashable
from typing import NamedTuple

from router.fit import FitFamily

_AVERAGE_WEIGHT = 0.05
_TRANSFER_PRIOR = (2.0, 0.5)


class Average:
    """Exponentially weighted moving average that starts at a prior."""

    __slots__ = ("value",)

    def __init__(self, prior: float) -> None:
        self.value = prior

    def observe(self, value: float) -> None:
        """One more sample."""
        self.value += _AVERAGE_WEIGHT * (value - self.value)


class Work(NamedTuple):
    """What stands between a request and its first token."""

    ahead: int
    """Tokens of others that wait before it."""
    new: int
    """Tokens of its own that are computed ..."""
    cached: int
    """... after these, which are not."""
    ahead_pairs: int = 0
    """The tokens ahead, each with all tokens before it in its own sequence."""
    spent_ms: float = 0.0
    """How long ago the worker said what waits: of that it has done as much since."""

    @property
    def pairs(self) -> int:
        """New token i attends to what was cached and the new ones before it: new * (cached + new / 2) pairs."""
        return self.new * (2 * self.cached + self.new) // 2


class CostModel:
    """Four fits and two averages; the priors only matter for the first few requests of a service.

    prefill   ms = fixed + tokens + attention work, each of those ahead in the queue and its own, per worker
    transfer  ms = fixed + bytes, per pair of workers
    step      ms = fixed + rows, per worker
    """

    def __init__(self) -> None:
        self._prefill = FitFamily((2.0, 50.0, 1.0))
        self._transfer = FitFamily(_TRANSFER_PRIOR)
        self._step = FitFamily((5.0, 1.0))
        self.output_tokens = Average(128.0)
        self.call_ms = Average(1000.0)
        self.ttft_error = Average(0.0)
        """|predicted - actual| / actual of the time from dispatch to first token."""

    # Features are scaled to about 1: thousands of tokens, millions of token pairs, megabytes, hundreds of rows.

    def prefill_ms(self, worker: str, work: Work) -> tuple[float, float]:
        """(queue, own) ms to the first token."""
        fixed, per_thousand, per_million_pairs = self._prefill.coefficients(worker)
        ahead_ms = per_thousand * work.ahead / 1e3 + per_million_pairs * work.ahead_pairs / 1e6
        queue_ms = max(ahead_ms - work.spent_ms, 0.0)
        return queue_ms, fixed + per_thousand * work.new / 1e3 + per_million_pairs * work.pairs / 1e6

    def transfer_ms(self, pair: Hashable, num_bytes: int) -> float:
        """What a handoff adds between first and second token: moving missing pages, and the handshake around it."""
        fixed, per_megabyte = self._transfer.coefficients(pair)
        return fixed + per_megabyte * num_bytes / 1e6

    def row_ms(self, worker: str) -> float:
        """What one more row adds to a decode step."""
        return self._step.coefficients(worker)[1] / 100

    def on_first_token(self, worker: str, work: Work, took_ms: float) -> None:
        """That much work took so long."""
        features = (1.0, (work.ahead + work.new) / 1e3, (work.ahead_pairs + work.pairs) / 1e6)
        ahead_ms, _ = self.prefill_ms(worker, work._replace(spent_ms=0.0))
        self._prefill.observe(worker, features, took_ms + min(work.spent_ms, ahead_ms))

    def on_transfer(self, pair: Hashable, num_bytes: int, took_ms: float) -> None:
        """A handoff's pages arrived."""
        self._transfer.observe(pair, (1.0, num_bytes / 1e6), took_ms)

    def on_proof(self, pair: Hashable, bytes_per_s: float) -> None:
        """A pair proved itself, with the bandwidth that it reached: as good as a first transfer of one megabyte."""
        if bytes_per_s > 0:
            self.on_transfer(pair, 1_000_000, _TRANSFER_PRIOR[0] + 1e9 / bytes_per_s)

    def on_step(self, worker: str, rows: int, took_ms: float) -> None:
        """A step that only decoded."""
        self._step.observe(worker, (1.0, rows / 100), took_ms)

    def forget_worker(self, worker: str) -> None:
        """Drop what was learned of one incarnation, alone and in pairs."""
        self._prefill.forget(worker)
        self._step.forget(worker)
        for pair in self._transfer.keys():
            if isinstance(pair, tuple) and worker in pair:
                self._transfer.forget(pair)
