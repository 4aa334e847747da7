"""Headers, shards and the identity of weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.errors import CheckpointError
from engine.models.checkpoint import INDEX, SINGLE, model_hash, stored_tensors
from engine.models.registry import load_config
from tests.fakes.checkpoints import tiny_checkpoint

SHARD_BYTES = 60_000


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def write_safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_headers_say_what_safetensors_says() -> None:
    folder = tiny_checkpoint("qwen3", dtype="bfloat16")
    stored, loaded = stored_tensors(folder), load_file(folder / SINGLE)
    assert stored.keys() == loaded.keys()
    content = (folder / SINGLE).read_bytes()
    for name, entry in stored.items():
        tensor = loaded[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), "BF16")
        data = content[entry.offset : entry.offset + entry.num_bytes]
        assert data == tensor.view(torch.int16).numpy().tobytes()


def test_shards_are_found_through_the_index() -> None:
    single, sharded = (stored_tensors(tiny_checkpoint("llama", shard_bytes=size)) for size in (0, SHARD_BYTES))
    assert len({entry.file for entry in sharded.values()}) > 3
    assert {name: entry.shape for name, entry in sharded.items()} == {
        name: entry.shape for name, entry in single.items()
    }


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=f"^{tmp_path / SINGLE}: missing, and no {INDEX} either"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_named_with_what_was_expected(tmp_path: Path, kept: int) -> None:
    folder = copy(tiny_checkpoint("llama"), tmp_path / "model")
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:kept])
    expected = f"truncated: {len(content) - 1} bytes, expected {len(content)}" if kept == -1 else "truncated or not"
    with pytest.raises(CheckpointError, match=f"^{folder / SINGLE}: {expected}"):
        stored_tensors(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{'a'", "not safetensors: broken header: "),
        ([], "not safetensors: the header is not a JSON object"),
        ({"a": {"dtype": "F32"}}, "tensor a: the header lacks a valid dtype, shape or data_offsets"),
        ({"a": 7}, "tensor a: the header lacks"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "tensor a: the header lacks"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 4]}}, r"tensor a: 4 bytes .* F32 \[2, 2\]"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, "tensor a: 4 bytes do not hold"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "truncated: .* bytes, expected"),
    ],
)  # fmt: skip
def test_a_broken_header_is_one_line(tmp_path: Path, header: Any, message: str) -> None:
    write_safetensors(tmp_path / SINGLE, header, b"1234")
    with pytest.raises(CheckpointError, match=f"^{tmp_path / SINGLE}: {message}"):
        stored_tensors(tmp_path)


def edit_index(folder: Path, change: Any) -> dict[str, str]:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return index.get("weight_map", {})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return copy(tiny_checkpoint("llama", shard_bytes=SHARD_BYTES), tmp_path / "model")


def test_an_absent_shard_is_named_with_a_tensor_of_it(sharded: Path) -> None:
    absent = sorted(sharded.glob("model-*.safetensors"))[1]
    absent.unlink()
    with pytest.raises(CheckpointError, match=rf"^{absent}: missing; {INDEX} expects tensor model\.\S+ in it"):
        stored_tensors(sharded)


def test_a_tensor_in_another_shard_than_the_index_says(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    moved = next(iter(load_file(first)))
    edit_index(sharded, lambda index: index["weight_map"].update({moved: second.name}))
    with pytest.raises(CheckpointError, match=f"^{second}: tensor {moved} is missing; {INDEX} expects it"):
        stored_tensors(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", 7])
def test_the_index_cannot_point_outside_of_the_folder(sharded: Path, name: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight is .* expected the name of a file in the same folder"):
        stored_tensors(sharded)


def test_an_index_without_a_map(sharded: Path) -> None:
    edit_index(sharded, lambda index: index.pop("weight_map"))
    with pytest.raises(CheckpointError, match=f"^{sharded / INDEX}: weight_map is missing, expected"):
        stored_tensors(sharded)


def hash_of(folder: Path) -> str:
    return model_hash(folder, load_config(folder))


def test_the_same_checkpoint_has_the_same_hash_anywhere(tmp_path: Path, sharded: Path) -> None:
    folder = tiny_checkpoint("llama")
    assert hash_of(folder) == hash_of(copy(folder, tmp_path / "elsewhere")) == hash_of(sharded)


def test_another_seed_dtype_or_fact_is_another_hash() -> None:
    folder = tiny_checkpoint("llama")
    config = load_config(folder)
    others = [
        tiny_checkpoint("llama", seed=1),
        tiny_checkpoint("llama", dtype="bfloat16"),
        tiny_checkpoint("llama", rms_norm_eps=1e-6),
        tiny_checkpoint("mistral", head_dim=16, sliding_window=None),
    ]
    hashes = {hash_of(folder), *map(hash_of, others), model_hash(folder, replace(config, mlp_bias=True))}
    assert len(hashes) == len(others) + 2


def test_what_does_not_change_keys_and_values_does_not_change_the_hash() -> None:
    folder = tiny_checkpoint("llama")
    config = load_config(folder)
    assert model_hash(folder, replace(config, eos_token_ids=(1,), max_position=17)) == hash_of(folder)


@pytest.mark.parametrize("index", range(3))
def test_one_changed_tensor_is_another_hash(tmp_path: Path, index: int) -> None:
    """As after fine-tuning a few modules: every tensor is sampled, none is left out."""
    folder = copy(tiny_checkpoint("llama"), tmp_path / "tuned")
    tensors = load_file(folder / SINGLE)
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.2.input_layernorm.weight", "lm_head.weight"]
    tensors[names[index]] = tensors[names[index]] * 1.01
    save_file(tensors, folder / SINGLE)
    assert hash_of(folder) != hash_of(tiny_checkpoint("llama"))
