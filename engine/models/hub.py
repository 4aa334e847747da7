"""From what the operator names to a checkpoint folder on this machine.

The hub's client takes half a second to import: only a hub id needs it.
"""

import re
from pathlib import Path

from engine.core.errors import CheckpointError
from engine.models.builtin import FOLDER
from engine.models.checkpoint import stored_tensors

BUILTIN = "builtin"
FILES = ["*.json", "*.safetensors", "*.jinja"]
OTHER_LAYOUTS = ["*/*", "consolidated*"]


def resolve_model(name: str) -> Path:
    """The folder of a model: "builtin", a folder's path, or a Hugging Face hub id such as "Qwen/Qwen3-0.6B".

    A hub id that is complete in the local cache needs no network; otherwise it is downloaded (with progress bars).

    Raises:
        CheckpointError: no such folder, no such hub id, no safetensors in it, or the hub cannot be reached.
    """
    if name == BUILTIN:
        return FOLDER
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise CheckpointError(f"{name}: no such folder, and not a hub id of the form owner/name")
    return _cached(name) or _downloaded(name)


def _cached(name: str) -> Path | None:
    """The snapshot in the local cache, if its weights are all there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=FILES))
        stored_tensors(folder)
    except (OSError, CheckpointError):
        return None
    return folder


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=OTHER_LAYOUTS))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder here, not complete in the hub's local cache, and cannot be downloaded: {reason}"
        ) from error
    stored_tensors(folder)  # offline, the hub's client may hand out an incomplete snapshot
    return folder
