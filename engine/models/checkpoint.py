"""Where each tensor of a checkpoint lies, read from the headers alone, and the identity of its weights. No torch.

A safetensors file is: header length (8 bytes, little-endian) | header (JSON: name -> dtype, shape, offsets) | data.
Format: https://github.com/huggingface/safetensors
"""

import json
import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

from engine.core.errors import CheckpointError
from engine.models.config import ModelConfig
from engine.models.facts import Facts

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPE_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
SAMPLE_BYTES, SAMPLES = 512, 4


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a file has it."""

    file: Path
    dtype: str
    """safetensors' name, such as BF16."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    num_bytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, single file or sharded with an index. Reads headers only.

    Raises:
        CheckpointError: a file is missing, truncated or broken, or the index and a shard disagree.
    """
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder / SINGLE}: missing, and no {INDEX} either; expected safetensors weights")
    index = Facts.read(folder / INDEX)
    weight_map = index.nested("weight_map")
    if weight_map is None:
        raise index.wrong("weight_map", "an object from tensor name to file name")
    tensors: dict[str, StoredTensor] = {}
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file_name in weight_map.values.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise weight_map.wrong(name, "the name of a file in the same folder")
        if file_name not in shards:
            if not (folder / file_name).is_file():
                raise CheckpointError(f"{folder / file_name}: missing; {INDEX} expects tensor {name} in it")
            shards[file_name] = _read_header(folder / file_name)
        if name not in shards[file_name]:
            raise CheckpointError(f"{folder / file_name}: tensor {name} is missing; {INDEX} expects it in this file")
        tensors[name] = shards[file_name][name]
    return tensors


def model_hash(folder: Path, config: ModelConfig) -> str:
    """A name for the function that the weights compute, for KVLayout: equal on every host that has this checkpoint.

    Covers the facts of the configuration that decide keys and values, and of every tensor its name, dtype, shape and
    samples of its bytes. Reads a few KiB a tensor, so 140 GB of weights take about a second. Not a defence against
    someone who forges weights.

    Raises:
        CheckpointError: as stored_tensors.
    """
    facts = asdict(config)
    del facts["eos_token_ids"], facts["max_position"]
    digest = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    tensors = sorted(stored_tensors(folder).items(), key=lambda item: (item[1].file, item[1].offset))
    samples: dict[str, bytes] = {}
    for name, tensor in tensors:
        head = json.dumps([name, tensor.dtype, tensor.shape]).encode()
        samples[name] = len(head).to_bytes(4, "little") + head + _sample(tensor)
    for name in sorted(samples):  # by name: the same weights in other shards are the same model
        digest.update(samples[name])
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    """The whole of a small tensor, else SAMPLES pieces spread over it, the first and the last bytes included."""
    with tensor.file.open("rb", buffering=0) as file:
        if tensor.num_bytes <= SAMPLES * SAMPLE_BYTES:
            return os.pread(file.fileno(), tensor.num_bytes, tensor.offset)
        step = (tensor.num_bytes - SAMPLE_BYTES) // (SAMPLES - 1)
        starts = [tensor.offset + step * i for i in range(SAMPLES)]
        return b"".join(os.pread(file.fileno(), SAMPLE_BYTES, start) for start in starts)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Tensors of one safetensors file, checked to lie inside it."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(f"{path}: truncated or not safetensors: {file_bytes} bytes do not hold a header")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not safetensors: broken header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not safetensors: the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, 8 + header_bytes) for name, entry in header.items()}
    expected = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=0)
    if expected > file_bytes:
        raise CheckpointError(f"{path}: truncated: {file_bytes} bytes, expected {expected}")
    return tensors


def _entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            width = DTYPE_BYTES.get(dtype)
            if not 0 <= start <= stop or (width is not None and stop - start != prod(shape) * width):
                raise CheckpointError(f"{path}: tensor {name}: {stop - start} bytes do not hold {dtype} {shape}")
            return StoredTensor(path, dtype, tuple(shape), data_start + start, stop - start)
    raise CheckpointError(f"{path}: tensor {name}: the header lacks a valid dtype, shape or data_offsets")
