"""The meetings of engine.kernels.peer as its text has them, under any order of events: reads find what was brought.

Each memory access of each program is a step of its own; a program runs when the schedule says so. A rank's kernel
begins when all programs of the one before have ended; ranks may be any number of kernels apart.
"""

from collections import defaultdict
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

MAX_SLOTS = 3
Kernel = tuple[int, int, bool]
"""Programs, parts of each, two-shot."""
kernels = st.lists(st.tuples(st.integers(1, MAX_SLOTS), st.integers(1, 3), st.booleans()), min_size=1, max_size=5)


class World:
    """Memory of all ranks, and what each program still has to do."""

    def __init__(self, num_ranks: int, plan: list[Kernel], halves: int = 2, waits: bool = True) -> None:
        self.num_ranks, self.plan, self.halves, self.waits = num_ranks, plan, halves, waits
        self.slabs: dict[tuple[int, int, int], object] = {}
        """(rank, half, slot) -> what was put there last."""
        self.flags: dict[tuple[int, int, int], int] = defaultdict(int)
        """(rank, slot, who said it) -> the last meeting."""
        self.meetings: dict[tuple[int, int], int] = defaultdict(int)

    def exchange(self, rank: int, slot: int, what: object) -> Iterator[bool]:
        """One meeting, step by step; False where it waits."""
        self.meetings[rank, slot] += 1
        k = self.meetings[rank, slot]
        half = k % self.halves
        self.slabs[rank, half, slot] = (rank, what)
        yield True
        for peer in range(self.num_ranks):
            self.flags[peer, slot, rank] = max(k, self.flags[peer, slot, rank])
            yield True
        for peer in range(self.num_ranks):
            while self.waits and self.flags[rank, slot, peer] < k:
                yield False
        for peer in range(self.num_ranks):
            assert self.slabs.get((peer, half, slot)) == (peer, what), "read what another meeting brought, or nothing"
            yield True

    def program(self, rank: int, number: int, slot: int, parts: int, two_shot: bool) -> Iterator[bool]:
        for part in range(parts):
            for shot in range(2 if two_shot else 1):
                yield from self.exchange(rank, slot, (number, part, shot))

    def run(self, rng: Random) -> None:
        """Until all ranks have run all kernels. Raises AssertionError for a wrong read, or if nobody can go on."""
        running: list[tuple[int, Iterator[bool]]] = []
        next_kernel = [0] * self.num_ranks
        idle = 0
        while True:
            for rank in range(self.num_ranks):
                number = next_kernel[rank]
                if number < len(self.plan) and not any(owner == rank for owner, _ in running):
                    programs, parts, two_shot = self.plan[number]
                    running += [(rank, self.program(rank, number, slot, parts, two_shot)) for slot in range(programs)]
                    next_kernel[rank] += 1
            if not running:
                return
            chosen = rng.choice(running)
            try:
                idle = 0 if next(chosen[1]) else idle + 1
            except StopIteration:
                running.remove(chosen)
            assert idle < 10_000, "all wait"


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 4), kernels, st.integers(0, 2**32))
def test_every_read_finds_what_that_meeting_brought(num_ranks: int, plan: list[Kernel], seed: int) -> None:
    World(num_ranks, plan).run(Random(seed))


@pytest.mark.parametrize("broken", [{"halves": 1}, {"waits": False}])
def test_without_two_halves_or_without_waiting_a_read_goes_wrong(broken: dict[str, int]) -> None:
    plan: list[Kernel] = [(2, 3, False), (1, 2, True), (3, 1, False)]
    wrong = 0
    for seed in range(40):
        try:
            World(2, plan, **broken).run(Random(seed))  # type: ignore[arg-type]
        except AssertionError:
            wrong += 1
    assert wrong > 0
