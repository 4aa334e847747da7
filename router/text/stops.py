"""Stop strings in a stream: found at the first moment they are complete, and never shown in part."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopScan:
    """What one piece of text did: `text` may be shown; `stop` is the stop string that ended the stream, if any."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Looks for several stop strings in a text that arrives in pieces.

    One Knuth-Morris-Pratt automaton a stop string: a character costs O(1) amortized, and the result depends on the
    text alone, not on how it was split. The first stop string to be complete wins; of several that end at the same
    character, the longest. Everything from its first character on is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failure_table(stop)) for stop in sorted(stops, key=len, reverse=True)]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> StopScan:
        """Scan the next piece. After a result with `stop` the matcher is spent."""
        if not self._stops:
            return StopScan(text)
        for position, char in enumerate(text, start=1):
            for index, (stop, failure) in enumerate(self._stops):
                matched = _advance(stop, failure, self._matched[index], char)
                self._matched[index] = matched
                if matched == len(stop):
                    seen = self._held + text[:position]
                    self._held = ""
                    return StopScan(seen[: len(seen) - matched], stop)
        seen = self._held + text
        cut = len(seen) - max(self._matched)
        self._held = seen[cut:]
        return StopScan(seen[:cut])

    def flush(self) -> str:
        """The text that was held back, now that nothing more comes; scanning starts afresh."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


def _failure_table(word: str) -> list[int]:
    """table[k]: length of the longest proper prefix of `word` that is a suffix of word[:k]."""
    table = [0, 0]
    for char in word[1:]:
        table.append(_advance(word, table, table[-1], char))
    return table


def _advance(word: str, failure: Sequence[int], matched: int, char: str) -> int:
    """The longest prefix of `word` that ends at `char`, given that `matched` characters of it ended just before."""
    while matched and word[matched] != char:
        matched = failure[matched]
    return matched + 1 if word[matched] == char else 0
