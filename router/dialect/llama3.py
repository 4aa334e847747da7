"""An answer that is nothing but {"name": ..., "parameters": {...}}, several of them joined by semicolons: Llama 3.x."""

from router.dialect.base import CallArguments, CallStart, Content, Piece
from router.dialect.json_scan import CallScan
from router.dialect.marks import MarkScanner

TAG = "<|python_tag|>"
MARKS = (TAG,)


class Llama3Parser:
    """Whether an answer is a call is known from its first character that is no white space."""

    def __init__(self) -> None:
        self._scanner = MarkScanner(MARKS)
        self._call: CallScan | None = None
        self._num_calls = 0
        self._words = False
        """The rest is text."""

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        for place, char in enumerate(text):
            if self._words:
                return [*pieces, Content(text[place:])]
            if self._call is not None:
                pieces += self._in_call(self._call, char)
            else:
                pieces += self._between(char)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._words:
            return []
        if self._call is not None:
            return [] if self._call.begun else [Content(self._call.raw)]
        held = self._scanner.flush()
        return [Content(held)] if held and not self._num_calls else []

    def _between(self, char: str) -> list[Piece]:
        """Before the first call, or behind one."""
        if self._num_calls and char in ";,":
            return []
        added, mark = self._scanner.push(char)
        if mark or not added:
            return []
        text = added + self._scanner.flush()
        if text.strip() != "{":
            self._words = True
            return [Content(text)]
        self._call = CallScan()
        return self._in_call(self._call, "{")

    def _in_call(self, call: CallScan, char: str) -> list[Piece]:
        begun = call.begun
        added = call.push(char)
        pieces: list[Piece] = []
        if call.broken:
            self._call, self._words = None, True
            return [] if begun else [Content(call.raw)]
        if call.begun and not begun:
            pieces.append(CallStart(self._num_calls, call.name))
            self._num_calls += 1
        if added:
            pieces.append(CallArguments(self._num_calls - 1, added))
        if call.done:
            self._call = None
        return pieces
