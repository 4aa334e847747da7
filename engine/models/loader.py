"""From a checkpoint folder to a model on a device.

Everything that can be wrong with the files is found in their headers, before the first byte of data is read.
Tensors are then read one at a time through a memory map, cast and placed, so the peak is the model and one tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.core.errors import CheckpointError
from engine.models.checkpoint import StoredTensor, stored_tensors
from engine.models.config import ModelConfig
from engine.models.fp8 import FP8, PRODUCTS, STORED_FP8, quantize_rows, read_fp8, scale_of
from engine.models.layers import Linear
from engine.models.llama import Layer, Llama, Weights
from engine.models.rope import rotation_table
from engine.models.weights import Parameter, Source, parameters

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all."""

FLOAT_DTYPES = ("F32", "BF16", "F16")
INITIAL_STD = 0.02  # of random weights, as transformers initializes the family


@dataclass(frozen=True, slots=True)
class Read:
    """One source of a parameter, and the rows that it fills."""

    source: Source
    entry: StoredTensor
    rows: Tensor
    scale_rows: Tensor | None
    """float32; None where the parameter is kept in the model's dtype."""


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: bool = False,
    progress: Progress | None = None,
) -> Llama:
    """Load the weights of `folder` as `dtype` onto `device`.

    Args:
        quantize: round the layers' products to 8-bit floats. Those that are stored so stay so if it is set, and are
            converted to `dtype` if it is not.

    Raises:
        CheckpointError: a file is missing, truncated or broken, or a tensor is missing or has the wrong shape or dtype.
    """
    stored = stored_tensors(folder)
    if "lm_head.weight" in stored:  # a checkpoint that says "tied" and has both means the one that it has
        config = replace(config, tied_embeddings=False)
    wanted = parameters(config)
    for parameter in wanted.values():
        for source in parameter.sources:
            _check(folder, source, stored)
    tensors: dict[str, Tensor] = {}
    reads: list[Read] = []
    for name, each in wanted.items():
        is_8_bit = quantize and name.endswith(PRODUCTS)
        tensors[name] = torch.empty(each.shape, dtype=FP8 if is_8_bit else dtype, device=device)
        if is_8_bit:
            tensors[scale_name(name)] = torch.empty(each.shape[0], dtype=torch.float32, device=device)
        reads += _reads(each, tensors[name], tensors.get(scale_name(name)), stored)
    reads.sort(key=lambda read: (read.entry.file, read.entry.offset))  # disks like their bytes in order
    total, done = sum(read.entry.num_bytes for read in reads), 0
    for read in reads:
        _read(read, stored)
        done += read.entry.num_bytes
        if progress:
            progress(done, total)
    return assemble(config, tensors)


def scale_name(parameter: str) -> str:
    """Of the tensor with the scales of an 8-bit parameter."""
    return parameter.removesuffix(".weight") + ".scale"


def random_model(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int, quantize: bool = False
) -> Llama:
    """A model of the same shape with weights drawn from `seed`: for benchmarks of shapes, not of answers."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters(config).items():
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if name.endswith("norm"):
            tensors[name] = tensor.fill_(1.0)
        else:
            tensors[name] = tensor.normal_(std=INITIAL_STD, generator=generator)
        if quantize and name.endswith(PRODUCTS):
            tensors[name], tensors[scale_name(name)] = quantize_rows(tensor)
    return assemble(config, tensors)


def _check(folder: Path, source: Source, stored: dict[str, StoredTensor]) -> None:
    entry = stored.get(source.name)
    expected = f"{list(source.shape)} of {', '.join(FLOAT_DTYPES)}"
    if entry is None:
        raise CheckpointError(f"{folder}: tensor {source.name} is missing, expected {expected}")
    if entry.shape != source.shape:
        raise CheckpointError(
            f"{entry.file}: tensor {source.name} has shape {list(entry.shape)}, expected {expected} (config.json)"
        )
    if entry.dtype == STORED_FP8 and len(source.shape) == 2:
        scale_of(source, stored)
    elif entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{entry.file}: tensor {source.name} has dtype {entry.dtype}, expected {expected}")


def _reads(parameter: Parameter, tensor: Tensor, scale: Tensor | None, stored: dict[str, StoredTensor]) -> list[Read]:
    """Each source of the parameter, where it is stored, and the rows of `tensor` and `scale` that it fills."""
    counts = [source.part[0] for source in parameter.sources]
    rows = torch.split(tensor, counts)
    scale_rows = [None] * len(counts) if scale is None else list(torch.split(scale, counts))
    return [
        Read(source, stored[source.name], filled, scales)
        for source, filled, scales in zip(parameter.sources, rows, scale_rows, strict=True)
    ]


def _read(read: Read, stored: dict[str, StoredTensor]) -> None:
    if read.entry.dtype == STORED_FP8:
        values_OI, scale_O = read_fp8(read.source, stored, read.rows.device)
        if read.scale_rows is None:
            read.rows.copy_(values_OI.float() * scale_O[:, None])
            return
    elif read.scale_rows is not None:
        part = torch.empty(read.rows.shape, dtype=torch.float32, device=read.rows.device)
        _read_floats(read.source, read.entry, part)
        values_OI, scale_O = quantize_rows(part)
    else:
        _read_floats(read.source, read.entry, read.rows)
        return
    read.rows.copy_(values_OI)
    read.scale_rows.copy_(scale_O)


def _read_floats(source: Source, entry: StoredTensor, target: Tensor) -> None:
    index = (slice(None),) * source.dim + (slice(source.start, source.stop),)
    try:
        # One map per tensor: pages that were read leave the process with it.
        with safe_open(entry.file, framework="pt") as file:
            target.copy_(file.get_slice(source.name)[index])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{entry.file}: tensor {source.name} cannot be read: {error}") from error


def assemble(config: ModelConfig, tensors: dict[str, Tensor]) -> Llama:
    """The model over `tensors`, one for each name in engine.models.weights.parameters."""
    layers = tuple(_layer(config, tensors, f"layers.{index}") for index in range(config.num_layers))
    embedding_VD = tensors["embedding"]
    cos_sin_PE = rotation_table(config.attention.rope, config.attention.head_dim, config.max_position)
    weights = Weights(
        embedding_VD=embedding_VD,
        layers=layers,
        norm_D=tensors["norm"],
        head_VD=embedding_VD if config.tied_embeddings else tensors["head"],
        cos_sin_PE=cos_sin_PE.to(embedding_VD.device),
    )
    return Llama(config, weights)


def _layer(config: ModelConfig, tensors: dict[str, Tensor], prefix: str) -> Layer:
    def linear(name: str) -> Linear:
        weight, bias, scale = (f"{prefix}.{name}.{part}" for part in ("weight", "bias", "scale"))
        return Linear(tensors[weight], tensors.get(bias), tensors.get(scale))

    facts, qk_norm_NE = config.attention, None
    if facts.qk_norm:
        rows = (("q_norm", facts.num_heads), ("k_norm", facts.num_kv_heads))
        qk_norm_NE = torch.cat([tensors[f"{prefix}.{name}"].expand(count, -1) for name, count in rows])
    return Layer(
        input_norm_D=tensors[f"{prefix}.input_norm"],
        qkv=linear("qkv"),
        qk_norm_NE=qk_norm_NE,
        output=linear("output"),
        mlp_norm_D=tensors[f"{prefix}.mlp_norm"],
        gate_up=linear("gate_up"),
        down=linear("down"),
    )
