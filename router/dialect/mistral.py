"""[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] and, of newer models, [TOOL_CALLS]name[ARGS]{...}."""

from collections.abc import Callable

from router.dialect.base import CallArguments, CallStart, Content, Piece
from router.dialect.json_scan import CallScan, ValueScan, is_name
from router.dialect.marks import MarkScanner

CALLS, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MARKS = (CALLS, ARGS, ID)


class MistralParser:
    """See Parser."""

    def __init__(self) -> None:
        self._scanner = MarkScanner((CALLS,))
        self._call = CallScan()
        self._value = ValueScan()
        self._raw = ""
        """Since the mark, until it is clear that calls follow."""
        self._num_calls = 0
        self._step: Callable[[str], list[Piece]] = self._in_text

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        for char in text:
            pieces += self._step(char)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._step == self._in_text:
            held = self._scanner.flush()
            return [Content(held)] if held else []
        if self._step == self._in_call and not self._call.begun:
            return [Content(self._raw + self._call.raw)]
        return [Content(self._raw)] if self._raw else []

    def _in_text(self, char: str) -> list[Piece]:
        added, mark = self._scanner.push(char)
        if mark:
            self._raw, self._step = CALLS, self._after_mark
        return [Content(added)] if added else []

    def _text_again(self) -> None:
        self._raw = ""
        self._step = self._in_text

    def _after_mark(self, char: str) -> list[Piece]:
        self._raw += char
        if char == "[":
            self._step = self._in_list
        elif not char.isspace():
            self._step = self._in_name
        return []

    def _in_list(self, char: str) -> list[Piece]:
        if char == "{":
            self._call, self._step = CallScan(), self._in_call
            return self._in_call(char)
        if char == "]":
            shown = f"{self._raw}]" if self._raw else ""
            self._text_again()
            if not shown:
                self._scanner.skip_space()
            return [Content(shown)] if shown else []
        if self._raw:
            self._raw += char
        return []

    def _in_call(self, char: str) -> list[Piece]:
        call, begun = self._call, self._call.begun
        added = call.push(char)
        pieces: list[Piece] = []
        if call.broken:
            shown = "" if begun else self._raw + call.raw
            self._text_again()
            return [Content(shown)] if shown else []
        if call.begun and not begun:
            pieces.append(self._start(call.name))
        if added:
            pieces.append(CallArguments(self._num_calls - 1, added))
        if call.done:
            self._step = self._in_list
        return pieces

    def _in_name(self, char: str) -> list[Piece]:
        self._raw += char
        if char != "{":
            if len(self._raw) > 512:  # no tool is called that
                return self._no_call()
            return []
        name = self._raw.removeprefix(CALLS)[:-1].partition(ARGS)[0].partition(ID)[0].strip()
        if not is_name(name):
            return self._no_call()
        self._value, self._step = ValueScan(), self._in_arguments
        return [self._start(name), *self._in_arguments(char)]

    def _no_call(self) -> list[Piece]:
        shown = self._raw
        self._text_again()
        return [Content(shown)]

    def _in_arguments(self, char: str) -> list[Piece]:
        if self._value.push(char)[1]:
            self._text_again()
            self._scanner.skip_space()
        return [CallArguments(self._num_calls - 1, char)]

    def _start(self, name: str) -> Piece:
        self._raw = ""
        self._num_calls += 1
        return CallStart(self._num_calls - 1, name)
