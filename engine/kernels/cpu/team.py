"""Runs a compiled kernel on the threads that torch's own operations use.

Between two products torch's threads spin on their cores, waiting for the next. Threads of one's own would share those
cores with them: attention on two took as long as on one (2 cores). So the kernel is handed to the same team, through
the entry of the OpenMP runtime that torch's wheels for Linux bring, libgomp: handing over takes 2 us. Each calling
thread has a team of its own, so engines in one process do not meet. Without that library kernels run on one thread.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RUNTIME = "libgomp*.so*"
ENTRY_WORDS = 2
"""The first words of a kernel's arguments belong to the team: where to ask for this thread's number and for how many
there are. Both are 0 when one thread runs the kernel by itself."""


class Team:
    """Torch's threads, or the calling one alone."""

    def __init__(self, library: ctypes.CDLL | None) -> None:
        self._library = library
        if library is not None:
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            self._words = [_address(library.omp_get_thread_num), _address(library.omp_get_num_threads)]

    @property
    def num_threads(self) -> int:
        """As many as torch uses for one operation."""
        return torch.get_num_threads() if self._library is not None else 1

    def run(self, entry: Any, words: NDArray[np.int64], num_threads: int) -> None:
        """Call `entry` (engine.kernels.cpu.jit.team_entry) with the address of `words` on each of the threads.

        Raises nothing: what a kernel cannot do is checked before.
        """
        if self._library is None or num_threads == 1:
            words[:ENTRY_WORDS] = 0
            entry.ctypes(words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
        else:
            words[:ENTRY_WORDS] = self._words
            self._library.GOMP_parallel(entry.address, words.ctypes.data, num_threads, 0)


@cache
def torch_team() -> Team:
    """The team of this process."""
    library = _find()
    if library is None:
        logging.getLogger(__name__).info("no %s beside torch: attention of decode steps runs on one thread", RUNTIME)
    return Team(library)


def _find() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent
    for path in sorted([*(folder / "lib").glob(RUNTIME), *folder.parent.glob(f"torch.libs/{RUNTIME}")]):
        return ctypes.CDLL(str(path))
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
