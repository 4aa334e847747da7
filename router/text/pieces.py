"""What each token id adds to the text, as bytes.

Both families of tokenizers that Baton serves spell a text as the plain concatenation of its tokens' bytes: byte-level
BPE (each character of a token stands for one byte) and sentencepiece style (U+2581 for a space, <0xAB> for a byte that
has no token). Knowing each token's bytes makes streaming exact and O(1) a token; decoding windows of ids is neither.
"""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from engine.core.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE (GPT-2's table): printable bytes stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_CHAR = _byte_alphabet()


def _byte_level_piece(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:  # an added token that is spelled as itself
        return token.encode()


def _marked_piece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE_MARK, " ").encode()


class PieceTable:
    """Bytes of every token id.

    Attributes:
        pieces: by id; b"" for ids that add nothing to the text: special tokens and holes.
        names: by id, the special tokens' own spelling.
        strips_first_space: the tokenizer writes a space before a text's first word, and decoding drops it.
    """

    def __init__(
        self, decoder: Mapping[str, Any] | None, vocabulary: Mapping[str, int], special: Mapping[int, str], where: str
    ) -> None:
        """Read the table off a tokenizer.

        Args:
            decoder: the "decoder" of tokenizer.json.
            vocabulary: all tokens, added ones included, to their ids.
            special: ids and spelling of the special tokens.
            where: the file, for errors.

        Raises:
            CheckpointError: the decoder does more than join tokens.
        """
        kinds = _decoder_kinds(decoder)
        if kinds & {"ByteLevel"}:
            spell = _byte_level_piece
        elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            spell = _marked_piece
        else:
            found = ", ".join(sorted(kinds)) or "none"
            raise CheckpointError(f"{where}: decoder {found} is not supported; expected byte-level or sentencepiece")
        self.strips_first_space = bool(kinds & {"Strip", "Metaspace"})
        self.pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            self.pieces[index] = spell(token)
        self.names = dict(special)
        for index in special:
            self.pieces[index] = b""
        self.longest = max(map(len, self.pieces), default=1)

    def showing(self, names: Sequence[str]) -> "PieceTable":
        """The same table with these special tokens as part of the text; itself when none of them is special."""
        shown = [index for index, name in self.names.items() if name in names and not self.pieces[index]]
        if not shown:
            return self
        table = copy(self)
        table.pieces = self.pieces[:]
        for index in shown:
            table.pieces[index] = self.names[index].encode()
        return table

    def of(self, token: int) -> bytes:
        """What `token` adds to the text."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""

    def spelled(self, token: int) -> bytes:
        """What to show for `token` on its own: like `of`, and a special token's name."""
        name = self.names.get(token)
        return self.of(token) if name is None else name.encode()


def _decoder_kinds(decoder: Mapping[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return {part["type"] for part in decoder["decoders"]}
    return {decoder["type"]}
