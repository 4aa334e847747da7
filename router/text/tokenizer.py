"""Text to token ids, as the checkpoint's tokenizer.json says. The router never loads torch for this."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine.core.errors import CheckpointError, InvalidRequest
from engine.core.types import token_buffer
from router.text.detokenizer import Detokenizer
from router.text.pieces import PieceTable

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """One checkpoint's tokenizer. Safe to use from several threads.

    Attributes:
        pieces: bytes of each token.
        special_tokens: the named special tokens (bos_token, eos_token, ...), as chat templates want them.
    """

    def __init__(self, backend: Backend, special_tokens: Mapping[str, str], where: str = "tokenizer") -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        added = backend.get_added_tokens_decoder().items()
        self.pieces = PieceTable(
            # The state of the decoder alone: the whole tokenizer as JSON would take 60 MB for a moment.
            None if backend.decoder is None else json.loads(backend.decoder.__getstate__()),
            backend.get_vocab(with_added_tokens=True),
            {index: token.content for index, token in added if token.special},
            where,
        )
        shrinks = 1 if backend.normalizer is None else 4
        self._chars_per_token = self.pieces.longest * shrinks

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and tokenizer_config.json. Raises CheckpointError that names the file at fault.

        What surrounds a text (BOS, EOS) is what tokenizer.json says; as in transformers, add_bos_token and
        add_eos_token of tokenizer_config.json do not overrule it.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; Baton needs the checkpoint's tokenizer.json")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        config = read_json(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(config)
        _add_missing_tokens(backend, config, special_tokens)
        return cls(backend, special_tokens, str(path))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> "array[int]":
        """Token ids of `text`, with what the checkpoint puts around a text (such as BOS) unless told otherwise.

        Holds no lock while it works, so a long text is best encoded in a thread.
        """
        try:  # encode_batch_fast lets other threads run meanwhile; encode does not
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:  # a lone surrogate is a str in Python and no text anywhere else
            raise InvalidRequest("the text is not valid Unicode") from error
        return token_buffer(encoding.ids)

    def surely_longer_than(self, text: str, num_tokens: int) -> bool:
        """True when `text` cannot fit in `num_tokens` tokens, told from its length alone."""
        return len(text) > num_tokens * self._chars_per_token

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        detokenizer = Detokenizer(self.pieces, starts_text=True)
        return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is none. Raises CheckpointError when it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _spelling(token: object) -> str | None:
    if isinstance(token, Mapping):  # older checkpoints write the whole AddedToken
        token = token.get("content")
    return token if isinstance(token, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: spelled for name in _NAMED if (spelled := _spelling(config.get(name))) is not None}


def _add_missing_tokens(backend: Backend, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Some checkpoints list added tokens in tokenizer_config.json only."""
    listed = sorted((int(index), entry) for index, entry in config.get("added_tokens_decoder", {}).items())
    tokens = [AddedToken(**entry) for _, entry in listed if backend.token_to_id(entry["content"]) is None]
    missing = {token for token in special_tokens.values() if backend.token_to_id(token) is None}
    tokens += [AddedToken(token, special=True) for token in sorted(missing)]
    backend.add_tokens(tokens)
