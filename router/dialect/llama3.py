"""An answer that is nothing but {"name": ..., "parameters": {...}}, several of them joined by semicolons: Llama 3.x."""

from router.dialect.base import Content, Piece
from router.dialect.calls import CallReader
from router.dialect.marks import MarkScanner

TAG = "<|python_tag|>"
MARKS = (TAG,)


class Llama3Parser:
    """Whether an answer is a call is known from its first character that is no white space."""

    def __init__(self) -> None:
        self._scanner = MarkScanner(MARKS)
        self._calls = CallReader()
        self._words = False
        """The rest is text."""

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        for place, char in enumerate(text):
            if self._words:
                return [*pieces, Content(text[place:])]
            pieces += self._in_call(char) if self._calls.reading else self._between(char)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._words:
            return []
        if self._calls.reading:
            return self._shown()
        held = self._scanner.flush()
        return [Content(held)] if held and not self._calls.count else []

    def _between(self, char: str) -> list[Piece]:
        """Before the first call, or behind one."""
        if self._calls.count and char in ";,":
            return []
        added, mark = self._scanner.push(char)
        if mark or not added:
            return []
        text = added + self._scanner.flush()
        if text.strip() != "{":
            self._words = True
            return [Content(text)]
        self._calls.begin()
        return self._in_call("{")

    def _in_call(self, char: str) -> list[Piece]:
        pieces = self._calls.push(char)
        if self._calls.broken:
            self._words = True
            return self._shown()
        return pieces

    def _shown(self) -> list[Piece]:
        """A call that is none, as far as nothing of it was given out."""
        return [] if self._calls.unread is None else [Content(self._calls.unread)]
