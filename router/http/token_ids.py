"""A long prompt of token ids goes from the body's bytes into an int32 buffer, without a Python object for each id.

Parsing 100,000 of them into a list takes 4 ms, making a buffer of the list 2.5, and dropping the list another: most of
what such a request costs. simdjson reads them into one buffer in 1.5. Here only what is plainly such a list is taken
out; everything else is left to the JSON parser, which says what is wrong with it.
"""

import re
from array import array

import numpy as np
from simdjson import Array, Parser

MIN_BYTES = 4096
"""Shorter bodies gain nothing."""
_KEY = re.compile(rb'"prompt"[ \t\r\n]*:[ \t\r\n]*\[')
_PARSER = Parser()
MAX_KEPT_BYTES = 1 << 20
"""A parser keeps memory for its longest text, fourteen bytes for each of its. Longer ones get a parser of their own."""
_INT32_MAX = (1 << 31) - 1


def cut_token_ids(data: bytes) -> "tuple[bytes, array[int] | None]":
    """`data` with the list of ids at its key "prompt" emptied, and the ids. As it is, and None, when in doubt: the key
    must be one of the body's own, the only one of its name, and the list nothing but integers of 31 bits.
    """
    at = data.find(b'"prompt"') if len(data) >= MIN_BYTES else -1
    key = _KEY.match(data, at) if at >= 0 else None
    if key is None or data.count(b"{", 0, at) != 1 or data.find(b"[", 0, at) >= 0:
        return data, None
    end = data.find(b"]", key.end())
    if end < 0 or data.find(b'"prompt"', end) >= 0:
        return data, None
    ids = _parse(memoryview(data)[key.end() - 1 : end + 1])
    return (data, None) if ids is None else (data[: key.end()] + data[end:], ids)


def _parse(text: memoryview) -> "array[int] | None":
    """A JSON list without lists in it, None unless all its items are such integers and there is one."""
    try:
        parser = _PARSER if len(text) <= MAX_KEPT_BYTES else Parser()
        found = parser.parse(text)
        assert isinstance(found, Array), "it is in brackets"
        buffer = found.as_buffer(of_type="i")
    except (ValueError, TypeError, RuntimeError):  # no JSON, something else in it, a number beyond 64 bits
        return None
    values = np.frombuffer(buffer, np.int64)
    if not len(values) or values.min() < 0 or values.max() > _INT32_MAX:
        return None
    ids = array("i", [0]) * len(values)
    np.frombuffer(ids, np.int32)[:] = values
    return ids
