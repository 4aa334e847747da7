"""From the tokens of one sequence to the text that its client sees."""

from dataclasses import dataclass, field

from engine.core.types import FinishReason, TokenLogprob
from router.api import Delta, Timing
from router.text.detokenizer import Detokenizer
from router.text.pieces import PieceTable
from router.text.stops import StopMatcher, StopScan


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token with its probability and its place in the text."""

    token: int
    logprob: float
    piece: bytes
    """The token's own bytes; they need not be whole characters."""
    start: int
    """Characters of the sequence's text before it."""
    top: tuple[tuple[int, float, bytes], ...] = ()
    """(token, log probability, bytes) of the likeliest, descending."""


@dataclass(slots=True)
class TextDelta:
    """What one Delta adds to the visible answer. Mutable because one is made for every token of every client."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    """As drawn, up to the one that completed a stop string; their text may come later."""
    logprobs: list[TokenText] = field(default_factory=list)
    """Of the tokens whose text became visible."""
    prompt_logprobs: list[TokenText] = field(default_factory=list)
    cached_tokens: int | None = None
    finish: FinishReason | None = None
    """STOP or LENGTH, on the last delta."""
    stopped_by: str | int | None = None
    """The stop string or stop token that ended the answer."""
    timing: Timing | None = None


class TextStream:
    """One sequence's way from Delta to TextDelta: whole characters, stop strings held back, per-token text.

    The text of a stop token is not part of the answer; nor is a stop string or anything after it.
    """

    def __init__(self, pieces: PieceTable, stops: tuple[str, ...], *, min_tokens: int, starts_text: bool) -> None:
        """Stop strings are looked for after `min_tokens` tokens. `starts_text`: see Detokenizer."""
        self._pieces = pieces
        self._detokenizer = Detokenizer(pieces, starts_text=starts_text)
        self._stops = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._num_chars = 0
        self._num_shown = 0
        self._unshown: list[TokenText] = []

    def push(self, delta: Delta) -> TextDelta:
        """The visible part of what came. After a result with `finish`, the call behind it is to be closed."""
        out = TextDelta(tokens=delta.tokens, cached_tokens=delta.cached_tokens, timing=delta.timing)
        if delta.prompt_logprobs:
            out.prompt_logprobs = prompt_texts(self._pieces, delta.prompt_logprobs)
        for position, token in enumerate(delta.tokens):
            ends = delta.stop_token == token and position == len(delta.tokens) - 1
            if delta.logprobs:
                self._unshown.append(token_text(self._pieces, delta.logprobs[position], self._num_chars))
            self._num_tokens += 1
            if self._show(out, "" if ends else self._detokenizer.push(token)):
                out.tokens = delta.tokens[: position + 1]
                return out
        if delta.finish_reason is None:
            if self._unshown:
                self._release(out)
            return out
        if not self._show(out, self._detokenizer.flush()):
            out.text += self._stops.flush()
            out.finish, out.stopped_by = delta.finish_reason, delta.stop_token
            out.logprobs, self._unshown = self._unshown, []
        return out

    def prompt_only(self, delta: Delta) -> TextDelta:
        """The end of a request for zero new tokens: the prompt's log probabilities; the one drawn token is dropped."""
        rows = prompt_texts(self._pieces, delta.prompt_logprobs)
        return TextDelta(prompt_logprobs=rows, cached_tokens=delta.cached_tokens, finish=FinishReason.LENGTH)

    def _show(self, out: TextDelta, text: str) -> bool:
        """Add to `out` what of `text` may be seen; True when a stop string ended the answer here."""
        self._num_chars += len(text)
        if self._num_tokens <= self._min_tokens:
            scan = StopScan(text)
        else:
            scan = self._stops.push(text)
        out.text += scan.text
        self._num_shown += len(scan.text)
        if scan.stop is None:
            return False
        out.finish, out.stopped_by = FinishReason.STOP, scan.stop
        self._release(out)
        self._unshown.clear()
        return True

    def _release(self, out: TextDelta) -> None:
        """Hand out the tokens that begin inside the visible text; one whose text is held back waits with it."""
        count = 0
        while count < len(self._unshown) and self._unshown[count].start < self._num_shown:
            count += 1
        out.logprobs = self._unshown[:count]
        del self._unshown[:count]


def token_text(pieces: PieceTable, row: TokenLogprob, start: int) -> TokenText:
    """`row` with the bytes of its tokens; the token stands `start` characters into the text."""
    top = tuple((token, logprob, pieces.spelled(token)) for token, logprob in row.top)
    return TokenText(row.token, row.logprob, pieces.spelled(row.token), start, top)


def prompt_texts(pieces: PieceTable, rows: tuple[TokenLogprob, ...]) -> list[TokenText]:
    """Like token_text for the prompt's tokens from its second one on; places are left to whoever shows the prompt."""
    return [token_text(pieces, row, 0) for row in rows]
