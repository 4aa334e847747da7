"""Token ids to text: exact, never half a character, the same however the tokens arrive."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from engine.core.errors import CheckpointError
from router.text.detokenizer import Detokenizer
from router.text.pieces import PieceTable
from router.text.tokenizer import Tokenizer
from tests.fakes.text_models import FAMILIES, served_model

TEXTS = ("the quick brown fox", "naïve café 你好世界 🙂", "  two  spaces\n\ttab", "👩‍🚀 e\u0301", "x")


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return served_model(tmp_path, request.param).tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_is_the_inverse_of_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_equals_the_library_s_decoder(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    ids = list(tokenizer.encode(text + "<tool call>" + text))
    assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=True)


def test_special_tokens_add_nothing_and_keep_their_name(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_id("<|end|>")
    assert end is not None
    assert tokenizer.pieces.of(end) == b""
    assert tokenizer.pieces.spelled(end) == b"<|end|>"


def test_a_character_comes_out_whole_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.pieces.pieces.index(bytes([byte])) for byte in "🙂".encode()]
    detokenizer = Detokenizer(tokenizer.pieces, starts_text=False)
    assert [detokenizer.push(token) for token in ids] == ["", "", "", "🙂"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_becomes_a_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    first = tokenizer.pieces.pieces.index(bytes(["🙂".encode()[0]]))
    detokenizer = Detokenizer(tokenizer.pieces, starts_text=False)
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "\ufffd"


def test_ids_beyond_the_vocabulary_add_nothing(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer.pieces, starts_text=False)
    assert detokenizer.push(10**6) == "" and detokenizer.push(-1) == ""


def test_a_text_of_its_own_loses_its_first_space_and_a_continuation_keeps_it(tmp_path: Path) -> None:
    tokenizer = served_model(tmp_path, "sentencepiece").tokenizer
    token = tokenizer.encode("the")[1]  # after BOS
    word = tokenizer.pieces.of(token).decode()
    assert word.startswith(" ")
    assert Detokenizer(tokenizer.pieces, starts_text=True).push(token) == word[1:]
    assert Detokenizer(tokenizer.pieces, starts_text=False).push(token) == word


def test_a_decoder_that_is_no_concatenation_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="decoder WordPiece is not supported"):
        PieceTable({"type": "WordPiece"}, {"a": 0}, {}, "tokenizer.json")
