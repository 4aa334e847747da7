"""The built-in model: a standard folder, made once, whole or not at all, the same on every machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from engine.models import builtin
from engine.models.builtin import builtin_path, write_builtin
from engine.models.checkpoint import model_hash, stored_tensors
from engine.models.loader import load_model
from engine.models.registry import load_config
from tests.fakes.checkpoints import reference_model
from tests.fakes.dense_attention import DenseAttention


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an installation without trained weights."""
    monkeypatch.setattr(builtin, "TRAINED", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "baton"


def test_it_is_made_once_and_nothing_else_is_left(cache: Path) -> None:
    folder = builtin_path()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert builtin_path() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert list(cache.iterdir()) == [folder]
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_it_is_a_checkpoint_that_transformers_agrees_on(cache: Path) -> None:
    folder = builtin_path()
    config = load_config(folder)
    model = load_model(folder, config, dtype=torch.float32, device=torch.device("cpu"))
    tokens = AutoTokenizer.from_pretrained(folder)("Hello, wörld: 你好")["input_ids"]
    tokens_T = torch.tensor(tokens)
    with torch.inference_mode():
        expected = reference_model(folder)(tokens_T[None]).logits[0]
        hidden_TD = model.forward(tokens_T, torch.arange(len(tokens)), DenseAttention(config.attention))
        torch.testing.assert_close(model.logits(hidden_TD), expected, atol=1e-4, rtol=0)


def test_it_has_a_chat_template_and_an_end_token(cache: Path) -> None:
    folder = builtin_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße!"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|system|>Be brief.<|end|><|user|>Grüße!<|end|><|assistant|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len("Be brief.Grüße!".encode()) + 5
    assert load_config(folder).eos_token_ids == tuple(tokenizer.convert_tokens_to_ids(["<|end|>"]))


def test_weights_are_the_same_wherever_they_are_drawn(tmp_path: Path) -> None:
    write_builtin(tmp_path)
    assert model_hash(tmp_path, load_config(tmp_path)) == "4e1a998dc32cf292c6afde6d75a6770b"
    assert sum(tensor.num_bytes for tensor in stored_tensors(tmp_path).values()) < 16e6


def test_two_processes_at_once_agree(cache: Path) -> None:
    code = f"""
from pathlib import Path
from engine.models import builtin
builtin.TRAINED = Path({str(cache / "none")!r})
print(builtin.builtin_path())
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert folders[0] == folders[1]
    assert list(cache.iterdir()) == [Path(folders[0])]
    assert stored_tensors(Path(folders[0]))


def test_trained_weights_come_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    monkeypatch.setattr(builtin, "TRAINED", trained)
    assert builtin_path() == trained
    assert not cache.exists()


def test_a_second_process_that_was_first_wins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = builtin.write_builtin

    def slow_write(draft: Path) -> None:
        monkeypatch.setattr(builtin, "write_builtin", write)
        builtin_path()
        write(draft)

    monkeypatch.setattr(builtin, "write_builtin", slow_write)
    folder = builtin_path()
    assert list(cache.iterdir()) == [folder]


def test_a_failed_attempt_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(draft: Path) -> None:
        (draft / "config.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin, "write_builtin", no_space)
    with pytest.raises(OSError, match="No space left"):
        builtin_path()
    assert list(cache.iterdir()) == []
