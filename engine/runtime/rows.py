"""What the device knows of every row between steps: its tokens, its pages and how it draws.

Rows keep their place ("slot") from `added` to `removed`, so that the host sends only what changed. A drawn token is
written where the next step of its row reads it: feedback needs no trip through the host and no case of its own.

Shape suffixes: R slots, C token capacity, P pages of a row, F sampling fields, M pages that rows have got.
"""

import torch

from engine.core.types import NewRow, Sampling, StepPlan
from engine.grammar.compiler import Compiler
from engine.runtime.constrain import FollowedRows
from engine.runtime.device import to_device
from engine.runtime.noise import seed_bits
from engine.runtime.traits import is_plain

TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION, PRESENCE, FREQUENCY, NUM_FIELDS = range(8)


class RowTable:
    """Persistent batch tensors. Applies the bookkeeping part of plans; steps only read it, and write drawn tokens."""

    def __init__(
        self,
        max_rows: int,
        max_model_len: int,
        page_size: int,
        filler_page: int,
        device: torch.device,
        grammars: Compiler | None = None,
    ) -> None:
        """`grammars`: see FollowedRows."""
        max_pages = -(-max_model_len // page_size)
        self.device = device
        self.page_size = page_size
        # One place more than a sequence can have: the last token may be drawn, though nothing extends it.
        self.tokens_RC = torch.zeros(max_rows + 1, max_model_len + 1, dtype=torch.int32, device=device)
        self.pages_RP = torch.full((max_rows + 1, max_pages), filler_page, dtype=torch.int32, device=device)
        self.spare_slot = max_rows
        """Of no row: padding of a graph reads and writes it."""
        self.fields_RF = torch.zeros(max_rows, NUM_FIELDS, dtype=torch.float32, device=device)
        self.seeds_R = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.sampling: list[Sampling] = [Sampling()] * max_rows
        self.num_prompt = [0] * max_rows
        self.special: set[int] = set()
        """Slots that want more than the argmax."""
        self.grammars = FollowedRows(grammars)
        self._filler_page = filler_page
        self._num_pages = [0] * max_rows
        self._slot_of: dict[int, int] = {}
        self._free = list(range(max_rows - 1, -1, -1))

    def apply(self, plan: StepPlan) -> None:
        """Forget `removed`, then take in `added`, then append `new_pages`."""
        for id in plan.removed:
            slot = self._slot_of.pop(id)
            self.special.discard(slot)
            self.grammars.remove(slot)
            self._free.append(slot)
        for row in plan.added:
            self._add(row)
        if plan.new_pages:
            self._append_pages(plan.new_pages)

    def slots(self, ids: list[int]) -> list[int]:
        """The slot of each row."""
        return [self._slot_of[id] for id in ids]

    def _add(self, row: NewRow) -> None:
        slot = self._free.pop()
        self._slot_of[row.id] = slot
        sampling = row.sampling
        self.sampling[slot] = sampling
        if not is_plain(sampling):
            self.special.add(slot)
        self.grammars.add(slot, row)
        self.num_prompt[slot] = row.num_prompt
        self._num_pages[slot] = 0
        self.tokens_RC[slot, : len(row.tokens)] = to_device(
            torch.frombuffer(row.tokens, dtype=torch.int32), self.device
        )
        self.pages_RP[slot].fill_(self._filler_page)
        self.fields_RF[slot] = to_device(_fields(sampling), self.device)
        # Not assigned: torch would copy the number from ordinary memory, and wait for the step in flight.
        self.seeds_R[slot].fill_(seed_bits(sampling.seed))

    def _append_pages(self, new_pages: list[tuple[int, list[int]]]) -> None:
        rows: list[int] = []
        columns: list[int] = []
        pages: list[int] = []
        for id, appended in new_pages:
            slot = self._slot_of[id]
            first = self._num_pages[slot]
            self._num_pages[slot] += len(appended)
            rows += [slot] * len(appended)
            columns += range(first, first + len(appended))
            pages += appended
        rows_M, columns_M, pages_M = to_device([rows, columns, pages], self.device)
        self.pages_RP[rows_M, columns_M] = pages_M.int()


def _fields(sampling: Sampling) -> list[float]:
    fields = [0.0] * NUM_FIELDS
    fields[TEMPERATURE] = sampling.temperature
    fields[TOP_P] = sampling.top_p
    fields[TOP_K] = sampling.top_k
    fields[MIN_P] = sampling.min_p
    fields[REPETITION] = sampling.repetition_penalty
    fields[PRESENCE] = sampling.presence_penalty
    fields[FREQUENCY] = sampling.frequency_penalty
    return fields
