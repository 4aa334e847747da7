"""Vectors of 16 floats for the kernels that numba's own loops cannot keep in registers, built as LLVM's operations.

A block is an intrinsic: it takes addresses (bytes) and sizes (elements) as int64 and keeps its sums in registers from
the first step to the last. Its sizes in registers are fixed where it is made. A processor without registers of 64 bytes
gets the same results from two or four smaller ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

LANES = 16
"""Floats in a vector."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_NEXT_LEVEL = 2
"""Locality of a prefetch: into the second cache and not the first, which the block itself fills."""


def count(number: int) -> ir.Constant:
    """A constant int64."""
    return ir.Constant(_INT64, number)


class Floats:
    """The elements that a block reads at an address: float32, or bfloat16 widened to it."""

    def __init__(self, element: types.Type) -> None:
        self.stored = _FLOAT if element == types.float32 else ir.IntType(16)
        self.name = "f32" if element == types.float32 else "i16"

    def widen(self, builder: Any, stored: Any) -> Any:
        """The vector of floats of a vector as stored."""
        if self.stored is _FLOAT:
            return stored
        wide = builder.zext(stored, ir.VectorType(_INT32, LANES))
        return builder.bitcast(builder.shl(wide, _all(_INT32, 16)), _VECTOR)


class Vectors:
    """LLVM's operations on vectors of floats, at the place of a builder."""

    zero = ir.Constant(_VECTOR, [0.0] * LANES)

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def pointer(self, address: Any, element: ir.Type = _FLOAT) -> Any:
        """To the elements at an address."""
        return self._builder.inttoptr(address, element.as_pointer())

    def load(self, pointer: Any, floats: Floats) -> Any:
        """16 elements, wherever they lie."""
        vector = ir.VectorType(floats.stored, LANES)
        loaded = self._builder.load(self._builder.bitcast(pointer, vector.as_pointer()))
        loaded.align = 2
        return floats.widen(self._builder, loaded)

    def load_first(self, pointer: Any, floats: Floats, num_left: Any) -> Any:
        """The first `num_left` of 16 elements, and zeros; what lies behind is not touched."""
        vector = ir.VectorType(floats.stored, LANES)
        lanes = ir.Constant(ir.VectorType(_INT64, LANES), list(range(LANES)))
        mask = self._builder.icmp_signed("<", lanes, self.spread(num_left, _INT64))
        operands = [vector.as_pointer(), _INT32, mask.type, vector]
        load = self._function(f"llvm.masked.load.v{LANES}{floats.name}.p0", vector, operands)
        at = self._builder.bitcast(pointer, vector.as_pointer())
        zeros = ir.Constant(vector, [0] * LANES)
        return floats.widen(self._builder, self._builder.call(load, [at, ir.Constant(_INT32, 2), mask, zeros]))

    def store(self, vector: Any, pointer: Any) -> None:
        """A whole vector, of 16 or fewer floats, wherever it belongs."""
        self._builder.store(vector, self._builder.bitcast(pointer, vector.type.as_pointer())).align = 4

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """A * b + c, rounded once."""
        fma = self._function(f"llvm.fma.v{LANES}f32", _VECTOR, [_VECTOR] * 3)
        return self._builder.call(fma, [a, b, c])

    def spread(self, value: Any, element: ir.Type = _FLOAT) -> Any:
        """One value in all lanes."""
        vector = ir.VectorType(element, LANES)
        nothing = ir.Constant(vector, ir.Undefined)
        first = self._builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
        return self._builder.shuffle_vector(first, nothing, _all(_INT32, 0))

    def fetch(self, pointer: Any) -> None:
        """Ask for the line of memory at a pointer, which need not be readable."""
        byte = ir.IntType(8).as_pointer()
        fetch = self._function("llvm.prefetch.p0", ir.VoidType(), [byte, _INT32, _INT32, _INT32])
        facts = [ir.Constant(_INT32, fact) for fact in (0, _NEXT_LEVEL, 1)]
        self._builder.call(fetch, [self._builder.bitcast(pointer, byte), *facts])

    def sums(self, four: Sequence[Any]) -> Any:
        """A vector of four floats: the sum of the lanes of each of four vectors, always added in the same order."""
        a, b, c, d = four
        pairs = self._fold(a, b, [0, 16, 1, 17], [2, 18, 3, 19]), self._fold(c, d, [0, 16, 1, 17], [2, 18, 3, 19])
        quads = self._fold(*pairs, [0, 1, 16, 17], [2, 3, 18, 19])  # a, b, c, d in each quarter
        halves = self._builder.fadd(self._pick(quads, range(8)), self._pick(quads, range(8, 16)))
        return self._builder.fadd(self._pick(halves, range(4)), self._pick(halves, range(4, 8)))

    def first(self, vector: Any) -> Any:
        """Its first lane, a vector of one."""
        return self._pick(vector, [0])

    def loop(self, stop: Any, step: int, sums: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """The sums after `body(i, sums)` for i = 0, step, ... while i + step <= stop."""
        builder, before = self._builder, self._builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        i, running = builder.phi(_INT64), [builder.phi(value.type) for value in sums]
        behind = builder.add(i, count(step))
        builder.cbranch(builder.icmp_signed("<=", behind, stop), inside, after)
        builder.position_at_end(inside)
        results = body(i, list(running))
        for phi, first, then in zip([i, *running], [count(0), *sums], [behind, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return list(running)

    def when(self, condition: Any, sums: Sequence[Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """`body(sums)` where the condition holds, else the sums as they are."""
        builder, before = self._builder, self._builder.block
        inside, after = (builder.append_basic_block(name) for name in ("inside", "after"))
        builder.cbranch(condition, inside, after)
        builder.position_at_end(inside)
        results, end = body(list(sums)), builder.block
        builder.branch(after)
        builder.position_at_end(after)
        merged = [builder.phi(value.type) for value in sums]
        for phi, value, result in zip(merged, sums, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, end)
        return merged

    def _fold(self, a: Any, b: Any, low: Sequence[int], high: Sequence[int]) -> Any:
        """Of each quarter of two vectors the lanes `low` plus the lanes `high`; b's count from 16."""
        picked = [[4 * quarter + lane for quarter in range(4) for lane in lanes] for lanes in (low, high)]
        return self._builder.fadd(*(self._pick(a, lanes, b) for lanes in picked))

    def _pick(self, a: Any, lanes: Sequence[int], b: Any = None) -> Any:
        mask = ir.Constant(ir.VectorType(_INT32, len(lanes)), list(lanes))
        return self._builder.shuffle_vector(a, a if b is None else b, mask)

    def _function(self, name: str, result: ir.Type, operands: Sequence[ir.Type]) -> Any:
        module = self._builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, operands), name)


def _all(element: ir.Type, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, LANES), [value] * LANES)
