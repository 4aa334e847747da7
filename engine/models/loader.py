"""From a checkpoint folder to a model on a device.

Everything that can be wrong with the files is found in their headers, before the first byte of data is read.
Tensors are then read one at a time through a memory map, cast and placed, so the peak is the model and one tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.core.errors import CheckpointError
from engine.models.base import Collective
from engine.models.checkpoint import StoredTensor, stored_tensors
from engine.models.config import ModelConfig
from engine.models.layers import Linear
from engine.models.llama import Layer, Llama, Weights
from engine.models.rope import rotation_table
from engine.models.weights import Parameter, Rank, Source, local_config, parameters

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all."""

FLOAT_DTYPES = ("F32", "BF16", "F16")
INITIAL_STD = 0.02  # of random weights, as transformers initializes the family


@dataclass(frozen=True, slots=True)
class Member:
    """Which rank of a model is meant, and how it speaks with the others."""

    rank: Rank
    ranks: Collective | None
    """None if there is one."""


ALONE = Member(Rank(), None)


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    member: Member = ALONE,
) -> Llama:
    """Load the weights of `folder` as `dtype` onto `device`, or those that one rank holds.

    Raises:
        CheckpointError: a file is missing, truncated or broken, or a tensor is missing or has the wrong shape or dtype;
            the model does not divide among the ranks.
    """
    stored = stored_tensors(folder)
    if "lm_head.weight" in stored:  # a checkpoint that says "tied" and has both means the one that it has
        config = replace(config, tied_embeddings=False)
    wanted = parameters(config, member.rank)
    for parameter in wanted.values():
        for source in parameter.sources:
            _check(folder, source, stored.get(source.name))
    tensors = {name: torch.empty(each.shape, dtype=dtype, device=device) for name, each in wanted.items()}
    reads = [read for name, each in wanted.items() for read in _reads(each, tensors[name], stored)]
    reads.sort(key=lambda read: (read[1].file, read[1].offset))  # disks like their bytes in order
    total, done = sum(entry.num_bytes for _, entry, _ in reads), 0
    for source, entry, target in reads:
        _read(source, entry, target)
        done += entry.num_bytes
        if progress:
            progress(done, total)
    return assemble(config, tensors, member)


def random_model(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int, member: Member = ALONE
) -> Llama:
    """A model of the same shape with weights drawn from `seed`: for benchmarks of shapes, not of answers.

    Each tensor that a checkpoint would have has a seed of its own, so ranks hold parts of one model, whatever their
    number. A rank draws on its device, one whole tensor at a time.
    """
    generator = torch.Generator(device)
    tensors = {}
    for name, parameter in parameters(config, member.rank).items():
        tensor = tensors[name] = torch.empty(parameter.shape, dtype=dtype, device=device)
        if name.endswith("norm"):
            tensor.fill_(1.0)
            continue
        rows = torch.split(tensor, [source.part[0] for source in parameter.sources])
        for source, target in zip(parameter.sources, rows, strict=True):
            digest = blake2b(f"{seed} {source.name}".encode(), digest_size=7).digest()
            generator.manual_seed(int.from_bytes(digest, "little"))
            if source.part == source.shape:
                target.normal_(std=INITIAL_STD, generator=generator)
            else:
                whole = torch.empty(source.shape, dtype=dtype, device=device)
                target.copy_(whole.normal_(std=INITIAL_STD, generator=generator)[_index(source)])
    return assemble(config, tensors, member)


def _check(folder: Path, source: Source, entry: StoredTensor | None) -> None:
    expected = f"{list(source.shape)} of {', '.join(FLOAT_DTYPES)}"
    if entry is None:
        raise CheckpointError(f"{folder}: tensor {source.name} is missing, expected {expected}")
    if entry.shape != source.shape:
        raise CheckpointError(
            f"{entry.file}: tensor {source.name} has shape {list(entry.shape)}, expected {expected} (config.json)"
        )
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{entry.file}: tensor {source.name} has dtype {entry.dtype}, expected {expected}")


def _reads(
    parameter: Parameter, tensor: Tensor, stored: dict[str, StoredTensor]
) -> list[tuple[Source, StoredTensor, Tensor]]:
    """Each source of the parameter, where it is stored, and the rows of `tensor` that it fills."""
    targets = torch.split(tensor, [source.part[0] for source in parameter.sources])
    return [(source, stored[source.name], rows) for source, rows in zip(parameter.sources, targets, strict=True)]


def _read(source: Source, entry: StoredTensor, target: Tensor) -> None:
    try:
        # One map per tensor: pages that were read leave the process with it.
        with safe_open(entry.file, framework="pt") as file:
            target.copy_(file.get_slice(source.name)[_index(source)])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{entry.file}: tensor {source.name} cannot be read: {error}") from error


def _index(source: Source) -> tuple[slice, ...]:
    return (slice(None),) * source.dim + (slice(source.start, source.stop),)


def assemble(config: ModelConfig, tensors: dict[str, Tensor], member: Member = ALONE) -> Llama:
    """The model over `tensors`, one for each name in engine.models.weights.parameters of the member's rank."""
    rank = member.rank
    config = local_config(config, rank)
    layers = tuple(_layer(config, tensors, f"layers.{index}") for index in range(config.num_layers))
    embedding_VD = tensors["embedding"]
    cos_sin_PE = rotation_table(config.attention.rope, config.attention.head_dim, config.max_position)
    weights = Weights(
        embedding_VD=embedding_VD,
        layers=layers,
        norm_D=tensors["norm"],
        head_VD=_part_of(embedding_VD, rank) if config.tied_embeddings else tensors["head"],
        cos_sin_PE=cos_sin_PE.to(embedding_VD.device),
    )
    return Llama(config, weights, member.ranks)


def _part_of(embedding_VD: Tensor, rank: Rank) -> Tensor:
    first, end = rank.share_or_all(len(embedding_VD))
    return embedding_VD if end - first == len(embedding_VD) else embedding_VD[first:end]


def _layer(config: ModelConfig, tensors: dict[str, Tensor], prefix: str) -> Layer:
    def linear(name: str) -> Linear:
        return Linear(tensors[f"{prefix}.{name}.weight"], tensors.get(f"{prefix}.{name}.bias"))

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
