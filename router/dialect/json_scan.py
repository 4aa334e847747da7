"""One JSON value, and one call written as a JSON object, while their characters come."""

import json
import re
from collections.abc import Callable

_SPACE = " \t\r\n"
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type")


def is_name(text: str) -> bool:
    """Whether a tool can be called that."""
    return _NAME.fullmatch(text) is not None


class ValueScan:
    """Finds the end of a JSON value. It is not checked further: it is the model's word."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def push(self, char: str) -> tuple[bool, bool]:
        """(`char` belongs to the value, the value has ended). A number ends at the first character behind it."""
        if self._in_string:
            return True, self._push_in_string(char)
        if not self._depth and self._begun and char in ",}] \t\r\n":
            return False, True
        if char in _SPACE and not self._begun:
            return False, False
        self._begun = True
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return True, self._depth <= 0
        return True, False

    def _push_in_string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            return not self._depth
        return False


class CallScan:
    """{"name": ..., "arguments": {...}} in any order of keys; "parameters" means the same as "arguments".

    Attributes:
        name: of the tool, once it is known.
        raw: all characters so far, until the call has begun: what a text that is no call is shown as.
        begun: name and arguments are there, at least in part; from then on `push` returns them.
        broken: it is no call.
        done: the object is closed.
    """

    def __init__(self) -> None:
        self.name = ""
        self.raw = ""
        self.begun = False
        self.broken = False
        self.done = False
        self._key = ""
        self._value = ""
        self._scan = ValueScan()
        self._arguments: str | None = None
        self._step: Callable[[str], str] = self._open

    def push(self, char: str) -> str:
        """What `char` adds to the arguments. Not after `broken` or `done`."""
        if not self.begun:
            self.raw += char
        if char in _SPACE and self._step not in (self._in_key, self._in_value, self._in_arguments):
            return ""
        return self._step(char)

    def _break(self) -> str:
        self.broken = True
        return ""

    def _open(self, char: str) -> str:
        self._step = self._before_key
        return "" if char == "{" else self._break()

    def _before_key(self, char: str) -> str:
        if char == "}":
            return self._close()
        if char != '"':
            return "" if char == "," else self._break()
        self._key, self._scan, self._step = '"', ValueScan(), self._in_key
        self._scan.push(char)
        return ""

    def _in_key(self, char: str) -> str:
        self._key += char
        if self._scan.push(char)[1]:
            self._key, self._step = _decoded(self._key), self._colon
            known = self._key in ("name", *_ARGUMENTS, *_OTHERS)
            return "" if known or self.begun else self._break()
        return ""

    def _colon(self, char: str) -> str:
        self._value, self._scan = "", ValueScan()
        wants_arguments = self._key in _ARGUMENTS and self._arguments is None
        self._step = self._in_arguments if wants_arguments else self._in_value
        return "" if char == ":" else self._break()

    def _in_value(self, char: str) -> str:
        mine, ended = self._scan.push(char)
        self._value += char if mine else ""
        if not ended:
            return ""
        added = ""
        if self._key == "name" and not self.begun:
            self.name = _decoded(self._value)
            if not is_name(self.name):
                return self._break()
            added = self._begin()
        self._step = self._before_key
        return added + ("" if mine else self._behind(char))

    def _in_arguments(self, char: str) -> str:
        mine, ended = self._scan.push(char)
        if not mine:  # white space before an object, for an object ends with a character of its own
            return ""
        if self._arguments is None:
            self._arguments = ""
            if char != "{":
                return self._break()
        self._arguments += char
        if ended:
            self._step = self._before_key
        if self.begun:
            return char
        return self._begin() if self.name else ""

    def _begin(self) -> str:
        """Name and arguments are known as far as they have come."""
        if self._arguments is None:
            return ""
        self.begun = True
        return self._arguments

    def _behind(self, char: str) -> str:
        return "" if char in _SPACE else self._step(char)

    def _close(self) -> str:
        if not self.name:
            return self._break()
        self.done = True
        if self._arguments is None:
            self._arguments = "{}"
            return self._begin()
        return ""


def _decoded(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
