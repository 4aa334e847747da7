"""The checkpoint's tokenizer gives what transformers gives, and broken checkpoints are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from engine.core.errors import CheckpointError, InvalidRequest
from router.text.tokenizer import Tokenizer
from tests.fakes.text_models import (
    CORPUS,
    FAMILIES,
    byte_level_tokenizer,
    tokenizer_config,
    write_checkpoint,
    write_family,
)

TEXTS = ("hello", "the dog 🙂", "", "a<|end|>b", CORPUS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_equal_those_of_transformers(tmp_path: Path, family: str, text: str, add_special_tokens: bool) -> None:
    folder = write_family(tmp_path, family)
    expected = PreTrainedTokenizerFast.from_pretrained(folder).encode(text, add_special_tokens=add_special_tokens)
    assert list(Tokenizer.load(folder).encode(text, add_special_tokens=add_special_tokens)) == expected


@pytest.mark.parametrize("fields", [{}, {"add_bos_token": False}, {"add_eos_token": True}, {"bos_token": "<|role|>"}])
def test_tokenizer_json_decides_what_surrounds_a_text(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, Backend.from_str(byte_level_tokenizer()), tokenizer_config(**fields))
    tokenizer = Tokenizer.load(folder)
    ids = list(tokenizer.encode("dog"))
    assert ids == [tokenizer.token_id("<|begin|>"), *tokenizer.encode("dog", add_special_tokens=False)]
    assert ids == PreTrainedTokenizerFast.from_pretrained(folder).encode("dog")


def test_tokens_that_only_tokenizer_config_lists_are_known(tmp_path: Path) -> None:
    entry = {"content": "<|extra|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    size = Backend.from_str(byte_level_tokenizer()).get_vocab_size()
    config = tokenizer_config(added_tokens_decoder={str(size): entry})
    folder = write_checkpoint(tmp_path, Backend.from_str(byte_level_tokenizer()), config)
    tokenizer = Tokenizer.load(folder)
    assert list(tokenizer.encode("<|extra|>", add_special_tokens=False)) == [size]
    assert PreTrainedTokenizerFast.from_pretrained(folder).encode("<|extra|>", add_special_tokens=False) == [size]
    assert tokenizer.pieces.of(size) == b""


def test_a_lone_surrogate_is_an_invalid_request(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        Tokenizer.load(write_family(tmp_path, "byte_level")).encode("a\ud800b")


def test_truncation_in_the_file_is_switched_off(tmp_path: Path) -> None:
    backend = Backend.from_str(byte_level_tokenizer())
    backend.enable_truncation(4)
    folder = write_checkpoint(tmp_path, backend, tokenizer_config())
    assert len(Tokenizer.load(folder).encode(CORPUS)) > 100


def test_length_tells_what_cannot_fit(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_family(tmp_path, "byte_level"))
    longest = tokenizer.pieces.longest
    assert not tokenizer.surely_longer_than("x" * longest * 5, 5)
    assert tokenizer.surely_longer_than("x" * (longest * 5 + 1), 5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: missing"),
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object, found list"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = write_family(tmp_path, "byte_level") / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_special_tokens_are_read_in_both_spellings(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "byte_level")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "<|end|>", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(folder).special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
