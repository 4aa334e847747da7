"""Calls written as JSON objects, one after the other in one answer: what the formats of Hermes and Llama share."""

from router.dialect.base import CallArguments, CallStart, Piece
from router.dialect.json_scan import CallScan


class CallReader:
    """Numbers the calls and turns the characters of the one under way into pieces.

    Attributes:
        count: calls that have begun.
        broken: the last one turned out to be none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.broken = False
        self._scan: CallScan | None = None
        self._raw: str | None = None

    @property
    def reading(self) -> bool:
        """A call is under way: characters are for `push`."""
        return self._scan is not None

    @property
    def unread(self) -> str | None:
        """What a call that broke, or breaks off here, is shown as; None where its arguments had begun."""
        scan = self._scan
        if scan is None:
            return self._raw
        return None if scan.begun else scan.raw

    def begin(self) -> None:
        """The next character is a call's first."""
        self._scan, self._raw, self.broken = CallScan(), None, False

    def push(self, char: str) -> list[Piece]:
        """What `char` adds. The call may be over then, or `broken`."""
        scan = self._scan
        assert scan is not None, "no call is under way"
        begun, added = scan.begun, scan.push(char)
        if scan.broken:
            self._scan, self._raw, self.broken = None, None if begun else scan.raw, True
            return []
        pieces: list[Piece] = []
        if scan.begun and not begun:
            pieces.append(CallStart(self.count, scan.name))
            self.count += 1
        if added:
            pieces.append(CallArguments(self.count - 1, added))
        if scan.done:
            self._scan = None
        return pieces
