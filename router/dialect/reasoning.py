"""<think>...</think> before the answer: DeepSeek-R1, Qwen3 and many others."""

from router.dialect.base import Content, Piece, Reasoning
from router.dialect.marks import MarkScanner

OPEN, CLOSE = "<think>", "</think>"
MARKS = (OPEN, CLOSE)


class ThinkParser:
    """Only what stands before all other words is thinking; a mark further on is part of the text."""

    def __init__(self, *, inside: bool) -> None:
        """`inside`: the prompt ends with the opening mark already."""
        self._scanner = MarkScanner((OPEN,))
        self._inside = self._over = self._skips = False
        if inside:
            self._think()

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        thoughts, words = "", ""
        for place, char in enumerate(text):
            if self._over:
                words += self._words(text[place:])
                break
            if self._inside:
                thoughts += self._thought(char)
            else:
                words += self._first(char)
        return [*([Reasoning(thoughts)] if thoughts else []), *([Content(words)] if words else [])]

    def finish(self) -> list[Piece]:
        """See Parser."""
        held = "" if self._over else self._scanner.flush()
        if not held:
            return []
        return [Reasoning(held) if self._inside else Content(held)]

    def _think(self) -> None:
        self._inside = True
        self._scanner = MarkScanner((CLOSE,))
        self._scanner.skip_space()

    def _first(self, char: str) -> str:
        added, mark = self._scanner.push(char)
        if mark:
            self._think()
        elif added:
            self._over = True
            added += self._scanner.flush()
        return added

    def _thought(self, char: str) -> str:
        added, mark = self._scanner.push(char)
        if mark:
            self._inside, self._over, self._skips = False, True, True
        return added

    def _words(self, text: str) -> str:
        """The rest; right behind the thoughts without white space."""
        if self._skips:
            text = text.lstrip()
            self._skips = not text
        return text
