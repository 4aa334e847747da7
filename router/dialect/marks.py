"""Marks such as <tool_call> in a text that comes character by character."""

from collections.abc import Sequence


class MarkScanner:
    """Splits a text at marks. White space before a mark is not part of the text; nor, after `skip_space`, behind it."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = tuple(marks)
        self._held = ""
        self._skips = False

    def skip_space(self) -> None:
        """White space up to the next word is dropped."""
        self._skips = True

    def push(self, char: str) -> tuple[str, str | None]:
        """(text that is none of a mark, the mark that `char` completes). What may become a mark is held back."""
        self._held += char
        shown = ""
        while True:
            word = self._held.lstrip()
            if word in self._marks:
                self._held = ""
                return shown, word
            if not word or any(mark.startswith(word) for mark in self._marks):
                if not word and self._skips:
                    self._held = ""
                return shown, None
            cut = len(self._held) - len(word) + 1
            shown += self._take(cut)

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        return self._take(len(self._held)) if self._held.strip() or not self._skips else ""

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        if self._skips:
            text, self._skips = text.lstrip(), False
        return text
