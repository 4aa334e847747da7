"""What the operator names becomes a folder, or one line that says why not."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from engine.core.errors import CheckpointError
from engine.models.builtin import FOLDER
from engine.models.checkpoint import stored_tensors
from engine.models.hub import resolve_model
from tests.fakes.checkpoints import tiny_checkpoint

REPOSITORY = "somebody/tiny-llama"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cached(cache: Path) -> Path:
    """A snapshot as the hub's client leaves it."""
    commit = "0" * 40
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(tiny_checkpoint("llama", shard_bytes=60_000), repository / "snapshots" / commit)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_builtin_is_the_model_that_ships_with_baton() -> None:
    assert resolve_model("builtin") == FOLDER
    assert stored_tensors(FOLDER)


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "./no/folder", "a/b/c", "", "a b/c"])
def test_what_is_neither_folder_nor_hub_id(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder, and not a hub id of the form owner/name$"):
        resolve_model(name)


def test_a_complete_snapshot_needs_no_network(cache: Path) -> None:
    snapshot = cached(cache)
    assert resolve_model(REPOSITORY) == snapshot


def test_offline_without_a_snapshot_is_one_line(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^{REPOSITORY}: .*cannot be downloaded: .") as caught:
        resolve_model(REPOSITORY)
    assert "\n" not in caught.value.message


def test_offline_with_part_of_a_snapshot_names_what_lacks(cache: Path) -> None:
    shard = sorted(cached(cache).glob("model-*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"^{shard}: missing; "):
        resolve_model(REPOSITORY)


def test_only_what_is_served_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise FileNotFoundError
        asked.update(options, name=name)
        return str(tiny_checkpoint("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model(REPOSITORY) == tiny_checkpoint("llama")
    assert asked["name"] == REPOSITORY
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
