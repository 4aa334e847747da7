"""<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them among words: Hermes, Qwen 2.5, Qwen3."""

from router.dialect.base import CallArguments, CallStart, Content, Piece
from router.dialect.json_scan import CallScan
from router.dialect.marks import MarkScanner

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, CLOSE)


class HermesParser:
    """See Parser."""

    def __init__(self) -> None:
        self._scanner = MarkScanner(MARKS)
        self._call: CallScan | None = None
        self._num_calls = 0
        self._closes = False
        """A call is over, and its closing mark has not come."""

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        for char in text:
            if self._call is not None:
                pieces += self._in_call(self._call, char)
            else:
                pieces += self._in_text(char)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser. A call that broke off before its arguments is shown as it was written."""
        if self._call is not None:
            return [] if self._call.begun else [Content(OPEN + self._call.raw)]
        held = self._scanner.flush()
        return [Content(held)] if held else []

    def _in_text(self, char: str) -> list[Piece]:
        added, mark = self._scanner.push(char)
        pieces: list[Piece] = [Content(added)] if added else []
        if mark == OPEN:
            self._call = CallScan()
        elif mark == CLOSE and self._closes:
            self._closes = False
            self._scanner.skip_space()
        elif mark == CLOSE:
            pieces.append(Content(CLOSE))
        return pieces

    def _in_call(self, call: CallScan, char: str) -> list[Piece]:
        begun = call.begun
        added = call.push(char)
        pieces: list[Piece] = []
        if call.broken:
            self._call = None
            return [Content(OPEN + call.raw)] if not begun else []
        if call.begun and not begun:
            pieces.append(CallStart(self._num_calls, call.name))
            self._num_calls += 1
        if added:
            pieces.append(CallArguments(self._num_calls - 1, added))
        if call.done:
            self._call, self._closes = None, True
            self._scanner.skip_space()
        return pieces
