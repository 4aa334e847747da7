"""The built-in model: a standard folder that ships with Baton and answers in words."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from engine.models.builtin import FOLDER
from engine.models.llama import Llama
from engine.models.loader import load_model
from engine.models.registry import load_config
from engine.models.train_builtin.train import answer
from tests.fakes.checkpoints import reference_model
from tests.fakes.dense_attention import DenseAttention


@pytest.fixture(scope="module")
def model() -> Llama:
    return load_model(FOLDER, load_config(FOLDER), dtype=torch.float32, device=torch.device("cpu"))


def test_it_is_a_checkpoint_that_transformers_agrees_on(model: Llama) -> None:
    tokens = AutoTokenizer.from_pretrained(FOLDER)("Hello, wörld: 你好")["input_ids"]
    tokens_T = torch.tensor(tokens)
    with torch.inference_mode():
        expected = reference_model(FOLDER)(tokens_T[None]).logits[0]
        hidden_TD = model.forward(tokens_T, torch.arange(len(tokens)), DenseAttention(model.config.attention))
        torch.testing.assert_close(model.logits(hidden_TD), expected, atol=1e-4, rtol=0)


def test_it_has_a_chat_template_and_an_end_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße!"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|system|>Be brief.<|end|><|user|>Grüße!<|end|><|assistant|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert load_config(FOLDER).eos_token_ids == tuple(tokenizer.convert_tokens_to_ids(["<|end|>"]))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What does os.path.join do?", "Join two or more pathname components"),
        ("What does json.dumps do?", "JSON formatted"),
        ("What is Baton?", "Baton serves language models."),
    ],
)
def test_it_answers_in_words(model: Llama, question: str, words: str) -> None:
    with torch.inference_mode():
        assert words in answer(model, Tokenizer.from_file(str(FOLDER / "tokenizer.json")), question)


def test_it_is_small_and_says_how_it_was_made() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 12e6
    curve = json.loads((FOLDER / "training.json").read_text())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    card = (FOLDER / "README.md").read_text()
    assert "PSF-2.0" in card
    assert "## Licence" in card
