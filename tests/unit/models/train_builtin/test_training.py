"""From documents to a checkpoint folder that the engine serves."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from engine.models.loader import load_model
from engine.models.registry import load_config
from engine.models.train_builtin.corpus import manifest_path
from engine.models.train_builtin.data import Dataset, Rows, rendered, train_tokenizer
from engine.models.train_builtin.model import SHAPE, VOCAB_SIZE, write_description
from engine.models.train_builtin.train import Recipe, train
from engine.models.weights import parameters
from tests.fakes.checkpoints import reference_model
from tests.fakes.dense_attention import DenseAttention

DOCUMENTS = [
    {"weight": 2, "turns": ["What does os.path.join do?", "Join two paths."]},
    {"weight": 0.5, "turns": ["And json?", "JSON, as text.", "Thanks", "You are welcome."], "system": "Be brief."},
    {"weight": 1, "text": "The json module reads and writes JSON in 2024."},
]


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return train_tokenizer([rendered(document) for document in DOCUMENTS] * 3, 400)


def test_chat_is_rendered_as_the_template_renders_it(tokenizer, tmp_path: Path) -> None:  # noqa: ANN001
    write_description(tmp_path, tokenizer)
    turns = DOCUMENTS[1]["turns"]
    messages = [{"role": "system", "content": "Be brief."}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    served = AutoTokenizer.from_pretrained(tmp_path)
    assert served.apply_chat_template(messages, tokenize=False) == rendered(DOCUMENTS[1])
    assert served(rendered(DOCUMENTS[1]))["input_ids"] == tokenizer.encode(rendered(DOCUMENTS[1])).ids


def test_tokenizer_keeps_every_text_and_single_digits(tokenizer) -> None:  # noqa: ANN001
    text = "héllo\tworld 2024\n  你好"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    digits = [tokenizer.id_to_token(i) for i in tokenizer.encode("2024").ids]
    assert digits == ["2", "0", "2", "4"]


def test_questions_are_not_learned(tokenizer) -> None:  # noqa: ANN001
    dataset = Dataset.encode(DOCUMENTS, tokenizer)
    learned = tokenizer.decode(dataset.tokens_T[dataset.learned_T].tolist(), skip_special_tokens=False)
    assert learned == (
        "Join two paths.<|end|>JSON, as text.<|end|>You are welcome.<|end|>"
        "The json module reads and writes JSON in 2024.<|end|>"
    )


def test_an_epoch_has_each_document_as_often_as_its_weight(tokenizer) -> None:  # noqa: ANN001
    dataset, random = Dataset.encode(DOCUMENTS, tokenizer), np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(200):
        rows = dataset.epoch(random)
        text = tokenizer.decode(rows.tokens_T.tolist(), skip_special_tokens=False)
        counts += [text.count(rendered(document)) for document in DOCUMENTS]
        assert rows.bounds[-1] == len(rows.tokens_T)
    assert counts[0] == 400
    assert counts[2] == 200
    assert 70 < counts[1] < 130


def row_texts(rows: Rows, tokenizer) -> list[str]:  # noqa: ANN001
    return [
        tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in np.split(rows.tokens_T, rows.bounds[1:-1])
    ]


def test_a_row_is_one_text_or_one_or_more_conversations(tokenizer) -> None:  # noqa: ANN001
    dataset, random = Dataset.encode(DOCUMENTS * 20, tokenizer), np.random.default_rng(0)
    rows = row_texts(dataset.epoch(random), tokenizer)
    text = rendered(DOCUMENTS[2])
    assert rows.count(text) == 20
    assert not any(text in row for row in rows if row != text)
    alone = sum(row == rendered(DOCUMENTS[0]) for row in rows)
    assert 10 < alone < 40
    assert any(row.count("<|user|>What") > 1 for row in rows)


def test_batches_hold_every_row_once_padded_and_cut(tokenizer) -> None:  # noqa: ANN001
    lengths = [2, 30, 33, 34, 97, 150, 300]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.arange(1, bounds[-1] + 1, dtype=np.uint16)
    rows = Rows(tokens, np.ones(len(tokens), bool), bounds)
    batches = rows.batches(batch_tokens=100, context=128, random=np.random.default_rng(0))
    seen = {}
    for batch in batches:
        assert batch.tokens_BL.shape == batch.learned_BL.shape
        assert batch.tokens_BL.size <= 200
        for row, learned in zip(batch.tokens_BL, batch.learned_BL, strict=True):
            assert ((row > 0) == learned).all()
            seen[int(row[0])] = row[row > 0].tolist()
    assert seen == {
        start + 1: list(range(start + 1, start + 1 + min(length, 129)))
        for start, length in zip(bounds[:-1].tolist(), lengths, strict=True)
    }


def test_the_full_model_fits_the_repository(tokenizer, tmp_path: Path) -> None:  # noqa: ANN001
    config = write_description(tmp_path, tokenizer)
    per_row = config.hidden_size
    count = sum(int(np.prod(each.shape)) for each in parameters(config).values())
    full = count + (VOCAB_SIZE - config.vocab_size) * per_row
    assert full * 2 < 12e6


def test_a_few_steps_make_a_checkpoint_that_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}.items():
        monkeypatch.setitem(SHAPE, name, value)
    corpus, out = tmp_path / "corpus.jsonl.gz", tmp_path / "model"
    with gzip.open(corpus, "wt") as file:
        file.writelines(json.dumps(document) + "\n" for document in DOCUMENTS * 20)
    sources = [{"name": "a", "licence": "MIT", "bytes": 1234567}]
    manifest_path(corpus).write_text(json.dumps({"python": "3.12.1", "sources": sources}))
    recipe = Recipe(seconds=600, steps=40, step_tokens=512, context=64, warmup=0.3)
    report = train(corpus, out, torch.device("cpu"), recipe)
    losses = [row["loss"] for row in report["curve"]]
    assert losses[-1] < 3.5 < np.log(load_config(out).vocab_size)
    assert json.loads((out / "training.json").read_text())["curve"] == report["curve"]
    assert report["exact_answers"] == 1.0
    assert "| a | MIT | 1,234,567 |" in (out / "README.md").read_text()

    config = load_config(out)
    model = load_model(out, config, dtype=torch.float32, device=torch.device("cpu"))
    tokens_T = torch.tensor(AutoTokenizer.from_pretrained(out)(rendered(DOCUMENTS[0]))["input_ids"])
    with torch.inference_mode():
        expected = reference_model(out)(tokens_T[None]).logits[0]
        hidden_TD = model.forward(tokens_T, torch.arange(len(tokens_T)), DenseAttention(config.attention))
        torch.testing.assert_close(model.logits(hidden_TD), expected, atol=1e-4, rtol=0)
