"""Token ids to text, one token at a time, never half a character."""

from codecs import getincrementaldecoder

from router.text.pieces import PieceTable

_Utf8Decoder = getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence: the same characters however the tokens arrive.

    Bytes that start a character wait until the character is whole; bytes that can be no character become U+FFFD.
    """

    def __init__(self, pieces: PieceTable, *, starts_text: bool) -> None:
        """`starts_text`: the tokens begin a text of their own instead of continuing one (see `strips_first_space`)."""
        self._pieces = pieces
        self._decoder = _Utf8Decoder(errors="replace")
        self._strip = starts_text and pieces.strips_first_space

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        piece = self._pieces.of(token)
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What remains at the end: U+FFFD for a character that was never finished, else nothing."""
        return self._decoder.decode(b"", final=True)
