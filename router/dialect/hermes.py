"""<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them among words: Hermes, Qwen 2.5, Qwen3."""

from router.dialect.base import Content, Piece
from router.dialect.calls import CallReader
from router.dialect.marks import MarkScanner

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, CLOSE)


class HermesParser:
    """See Parser."""

    def __init__(self) -> None:
        self._scanner = MarkScanner(MARKS)
        self._calls = CallReader()
        self._closes = False
        """A call is over, and its closing mark has not come."""

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        for char in text:
            pieces += self._in_call(char) if self._calls.reading else self._in_text(char)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser. A call that broke off before its arguments is shown as it was written."""
        if self._calls.reading:
            return self._shown()
        held = self._scanner.flush()
        return [Content(held)] if held else []

    def _in_text(self, char: str) -> list[Piece]:
        added, mark = self._scanner.push(char)
        pieces: list[Piece] = [Content(added)] if added else []
        if mark == OPEN:
            self._calls.begin()
        elif mark == CLOSE and self._closes:
            self._closes = False
            self._scanner.skip_space()
        elif mark == CLOSE:
            pieces.append(Content(CLOSE))
        return pieces

    def _in_call(self, char: str) -> list[Piece]:
        pieces = self._calls.push(char)
        if self._calls.broken:
            return self._shown()
        if not self._calls.reading:
            self._closes = True
            self._scanner.skip_space()
        return pieces

    def _shown(self) -> list[Piece]:
        """A call that is none, as far as nothing of it was given out."""
        return [] if self._calls.unread is None else [Content(OPEN + self._calls.unread)]
