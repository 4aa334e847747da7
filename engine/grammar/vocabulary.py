"""A checkpoint's tokens as the grammar engine wants them."""

from pathlib import Path

from llguidance import LLTokenizer

from engine.core.errors import CheckpointError, InvalidRequest
from engine.models.config import load_generation_config


def load_vocabulary(folder: Path, vocab_size: int) -> LLTokenizer:
    """The tokens of `folder`/tokenizer.json: masks have `vocab_size` bits, the rows of the model's logits.

    Takes up to seconds for 150,000 tokens.

    Raises:
        InvalidRequest: the model has no end of sequence, so no answer could end where its grammar does.
        CheckpointError: the tokenizer is missing or of an unknown kind.
    """
    path = folder / "tokenizer.json"
    ends = list(load_generation_config(folder).eos_token_ids)
    if not ends:
        raise InvalidRequest("the model has no end of sequence, so its answers cannot follow a grammar")
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; answers that follow a grammar need the checkpoint's tokenizer.json")
    try:
        return LLTokenizer(str(path), n_vocab=vocab_size, eos_token=ends)
    except ValueError as error:
        raise CheckpointError(f"{path}: no grammars with this tokenizer: {error}") from error
