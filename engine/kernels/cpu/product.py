"""Products of few rows with a weight that is read from memory once: x W^T in float32.

Four rows of the weight meet four of x at a time, each number loaded serves four sums, and the weight's rows that come
next are asked for while these are summed. A result has the same bits whatever other rows are computed with it.

Shape suffixes: T rows, I inputs, O outputs.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding
from numba.np.numpy_support import carray
from torch import Tensor

from engine.kernels.cpu.blocks import dot_block
from engine.kernels.cpu.jit import call_int, team_entry
from engine.kernels.cpu.team import ENTRY_WORDS, torch_team

MAX_ROWS = 64
"""For more the matrix library is faster."""
BYTES_A_THREAD = 1 << 17
"""Of the weight: for fewer another thread is not worth calling."""

NUM_WORDS = ENTRY_WORDS + 6
_ROWS_AHEAD, _FLOAT32 = 8, np.float32(0)
_first_four = dot_block(4, 4, fetches=True)
_four = dot_block(4, 4)
_first_one = dot_block(4, 1, fetches=True)
_one = dot_block(4, 1)
_single = dot_block(1, 1)


def _few_rows(address):
    words = carray(address, NUM_WORDS)
    part, num_parts = np.int64(0), np.int64(1)
    if words[0] != 0:
        part, num_parts = np.int64(call_int(words[0])), np.int64(call_int(words[1]))
    weight, x, out, num_outputs, depth, num_rows = words[2], words[3], words[4], words[5], words[6], words[7]
    ahead, num_fours = _ROWS_AHEAD * depth, num_outputs // 4
    for four in range(num_fours * part // num_parts, num_fours * (part + 1) // num_parts):
        o = 4 * four
        rows = weight + 4 * o * depth
        t = 4
        if num_rows >= 4:
            _first_four(_FLOAT32, rows, depth, x, depth, out + 4 * o, num_outputs, depth, ahead)
        else:
            _first_one(_FLOAT32, rows, depth, x, depth, out + 4 * o, num_outputs, depth, ahead)
            t = 1
        while t + 4 <= num_rows:
            _four(
                _FLOAT32, rows, depth, x + 4 * t * depth, depth, out + 4 * (t * num_outputs + o), num_outputs, depth, 0
            )
            t += 4
        while t < num_rows:
            _one(
                _FLOAT32, rows, depth, x + 4 * t * depth, depth, out + 4 * (t * num_outputs + o), num_outputs, depth, 0
            )
            t += 1
    if part == num_parts - 1:
        for o in range(4 * num_fours, num_outputs):
            for t in range(num_rows):
                at = out + 4 * (t * num_outputs + o)
                _single(_FLOAT32, weight + 4 * o * depth, depth, x + 4 * t * depth, depth, at, num_outputs, depth, 0)


@cache
def _entry() -> Any:
    return team_entry(_few_rows)


@cache
def has_wide_registers() -> bool:
    """Whether the processor has the 32 registers of 64 bytes that a block's sums are meant for (AVX-512)."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def few_rows_product(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T, out_TO; both contiguous and in float32, at least one row."""
    assert x_TI.is_contiguous() and weight_OI.is_contiguous() and len(x_TI) > 0
    (num_rows, depth), num_outputs = x_TI.shape, len(weight_OI)
    out_TO, team = x_TI.new_empty(num_rows, num_outputs), torch_team()
    addresses = [weight_OI.data_ptr(), x_TI.data_ptr(), out_TO.data_ptr()]
    words = np.array([0] * ENTRY_WORDS + addresses + [num_outputs, depth, num_rows], np.int64)
    enough = 1 + 4 * num_outputs * depth // BYTES_A_THREAD
    team.run(_entry(), words, min(team.num_threads, enough))
    return out_TO
