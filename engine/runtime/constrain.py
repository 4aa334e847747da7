"""Rows whose tokens follow a grammar: what the host knows of each, and the masks of one step.

A mask depends on the row's last token, which the step before may still be drawing. The forward pass is enqueued before
anybody asks for the mask, so the host waits for that token while the device is at work on the next one; a step without
such rows waits for nothing.

Where a row stands follows from its grammar and the tokens after its prompt alone. A row that comes back after a
preemption, or that another worker began, is opened with those tokens and goes on.

Shape suffixes: S rows that draw a token, G rows with a grammar, W words of 32 bits, V vocabulary.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor

from engine.core.errors import BatonError
from engine.core.types import NewRow, Sampling
from engine.grammar.compiler import Compiler

_NO_GRAMMARS = "this worker has no tokenizer, so it can follow no grammar"


class HostTokens:
    """Drawn tokens on their way to the host."""

    def __init__(self, tokens_S: Tensor, device: torch.device) -> None:
        """`tokens_S` as `to_host` gave it, on the current stream of `device`."""
        self._tokens_S = tokens_S
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        if self._arrived is not None:
            self._arrived.record()

    def __getitem__(self, index: int) -> int:
        """One of them; waits for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._tokens_S[index])


class Followed:
    """Where one row stands in its grammar.

    Attributes:
        id: of the row.
        refused: why no token can be drawn for it any more; empty while one can.
    """

    def __init__(self, id: int, opening: "Future[LLMatcher] | None") -> None:
        """`opening` stands after the tokens that the row came with. None: there is nobody to open a grammar."""
        self.id = id
        self.refused = "" if opening else _NO_GRAMMARS
        self._opening = opening
        self._matcher: LLMatcher | None = None
        self._drawn: list[tuple[HostTokens, int]] = []

    def drew(self, tokens: HostTokens, index: int) -> None:
        """The row's next token is `tokens[index]`, some time."""
        self._drawn.append((tokens, index))

    def matcher(self) -> LLMatcher | None:
        """After all tokens so far; waits for them, and for the grammar to be compiled. None: the row is refused."""
        drawn, self._drawn = self._drawn, []
        if self.refused or self._opening is None:
            return None
        if self._matcher is None:
            try:
                self._matcher = self._opening.result()
            except BatonError as error:
                self.refused = f"its grammar: {error.message}"
                return None
        for tokens, index in drawn:
            if not self._matcher.consume_token(tokens[index]):
                break
        return self._matcher if self.check() else None

    def check(self) -> bool:
        """Whether the matcher is still good; notes why not."""
        if self._matcher is not None and self._matcher.is_error():
            self.refused = f"its grammar: {self._matcher.get_error().splitlines()[0]}"
        return not self.refused


class FollowedRows:
    """The rows of one table that have a grammar.

    Attributes:
        by_slot: where each of them stands.
    """

    def __init__(self, compiler: Compiler | None) -> None:
        """`compiler`: of the model's vocabulary; without it, such rows are refused."""
        self.by_slot: dict[int, Followed] = {}
        self._compiler = compiler

    def add(self, slot: int, row: NewRow) -> None:
        """A row came to `slot`; nothing happens unless it has a grammar."""
        if row.sampling.grammar is not None:
            emitted = row.tokens[row.num_prompt :]
            opening = self._compiler.open(row.sampling.grammar, emitted) if self._compiler else None
            self.by_slot[slot] = Followed(row.id, opening)

    def when_compiled(self, call: Callable[[], None]) -> None:
        """Call it whenever a grammar that a request waits for is compiled, from any thread."""
        if self._compiler is not None:
            self._compiler.wake = call

    def remove(self, slot: int) -> None:
        """The row at `slot` has left."""
        self.by_slot.pop(slot, None)

    def drew(self, slots: list[int], tokens: HostTokens) -> dict[int, str]:
        """A step drew `tokens`, one for each of `slots`. Returns why, by id, for rows that are refused."""
        refused = {}
        for index, slot in enumerate(slots):
            if (row := self.by_slot.get(slot)) is not None:
                row.drew(tokens, index)
                if row.refused:
                    refused[row.id] = row.refused
        return refused


def forbid(
    logits_SV: Tensor, grammars: FollowedRows, slots: list[int], settings: list[Sampling], num_drawn: list[int]
) -> None:
    """Make impossible, in place, what the grammars of rows do not allow. Rows that are refused stay as they are.

    Args:
        grammars: of the table that `slots` are of.
        num_drawn: tokens after the prompt that each row has. Stop tokens wait for min_tokens, unless nothing else may
            come.
    """
    rows = [row for row, slot in enumerate(slots) if slot in grammars.by_slot]
    if not rows:
        return
    num_words = -(-logits_SV.shape[1] // 32)
    bits_GW = np.full((len(rows), num_words), -1, dtype=np.int32)
    _fill(bits_GW, [grammars.by_slot[slots[row]] for row in rows])
    for place, row in enumerate(rows):
        if num_drawn[row] < settings[row].min_tokens:
            _without_stops(bits_GW[place], settings[row].stop_token_ids)
    device = logits_SV.device
    host_GW = torch.from_numpy(bits_GW)
    bits_GW1 = (host_GW if device.type == "cpu" else host_GW.pin_memory()).to(device, non_blocking=True)[:, :, None]
    allowed_GV = (bits_GW1 >> torch.arange(32, dtype=torch.int32, device=device)).bitwise_and_(1).bool().flatten(1)
    rows_G = torch.tensor(rows, device=device)
    logits_SV[rows_G] = logits_SV[rows_G].masked_fill_(~allowed_GV[:, : logits_SV.shape[1]], -math.inf)


def _fill(bits_GW: "np.ndarray[tuple[int, int], np.dtype[np.int32]]", rows: list[Followed]) -> None:
    matchers = [(matcher, place) for place, row in enumerate(rows) if (matcher := row.matcher()) is not None]
    row_bytes = bits_GW.shape[1] * 4
    if len(matchers) == 1:
        matcher, place = matchers[0]
        matcher.unsafe_compute_mask_ptr(bits_GW[place].ctypes.data, row_bytes)
    elif matchers:
        _threads().unsafe_compute_mask_ptr(matchers, bits_GW.ctypes.data, row_bytes, len(rows))
    for place, row in enumerate(rows):
        if not row.check():
            bits_GW[place] = -1


@cache
def _threads() -> LLExecutor:
    return LLExecutor()


def _without_stops(bits_W: "np.ndarray[tuple[int], np.dtype[np.int32]]", stop_token_ids: tuple[int, ...]) -> None:
    others_W = bits_W.view(np.uint32).copy()
    for token in stop_token_ids:
        others_W[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    if others_W.any():
        bits_W[:] = others_W.view(np.int32)
