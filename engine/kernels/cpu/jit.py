"""How the CPU's kernels are compiled, and the few scalar operations that they share.

numba keeps a compiled kernel beside its source, or in the user's cache folder where the source cannot be written, by
processor and by the age of the kernel's own file: after a change here, remove __pycache__/*.nbi.
"""

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

# No "nnan" or "ninf": a score may be infinite, and a NaN must stay one.
MATH = {"contract", "reassoc", "nsz", "arcp"}
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": MATH}
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)

inlined = numba.njit(forceinline=True, **_OPTIONS)
"""A part of a kernel, compiled with it."""


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function of arrays and numbers for one signature; its calls release the interpreter's lock."""
    return lambda function: _cached(numba.njit, signature, _OPTIONS, function)


def team_entry(function: Callable[..., Any]) -> Any:
    """Compile a function of one pointer to int64 for engine.kernels.cpu.team."""
    signature = types.void(types.CPointer(types.int64))
    return _cached(numba.cfunc, signature, {"error_model": "numpy", "fastmath": MATH}, function)


def _cached(decorate: Callable[..., Any], signature: Any, options: dict[str, Any], function: Callable[..., Any]) -> Any:
    try:
        return decorate(signature, cache=True, **options)(function)
    except RuntimeError as error:  # numba found no folder that it can write
        logging.getLogger(__name__).warning("CPU kernels are compiled at every start: %s", error)
        return decorate(signature, **options)(function)


def _pointer_to(element: types.Type) -> Any:
    @intrinsic
    def pointer(typing, address):
        def generate(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    return pointer


int32_at, int64_at = _pointer_to(types.int32), _pointer_to(types.int64)
"""The pointer that an address means; numba.carray makes an array of it."""
uint16_at, float32_at = _pointer_to(types.uint16), _pointer_to(types.float32)


@intrinsic
def _call_int(typing, address) -> Any:
    from llvmlite import ir

    def generate(context, builder, signature, values):
        function_type = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(values[0], function_type.as_pointer()), [])

    return types.int32(types.int64), generate


call_int: Any = _call_int
"""The result of the C function int f(void) at an address."""


def widen(x) -> Any:
    """A stored number as float32: itself, or the bits of a bfloat16."""
    raise NotImplementedError("for compiled code")


@overload(widen, inline="always")
def _widen(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@inlined
def exp32(x) -> Any:
    """e^x in float32 to two units in the last place, in a form that vectorizes; at least e^-87, at most e^88.

    Range reduction and minimax polynomial as in Cephes' expf.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
