"""From a checkpoint folder to a model on a device.

Everything that can be wrong with the files is found in their headers, before the first byte of data is read.
Tensors are then read one at a time through a memory map, cast and placed, so the peak is the model and one tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from engine.core.errors import CheckpointError
from engine.models.base import Collective
from engine.models.checkpoint import StoredTensor, stored_tensors
from engine.models.config import ModelConfig
from engine.models.fp8 import FP8, PRODUCTS, STORED_FP8, quantize_rows, read_fp8, read_tensor, scale_of
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


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a parameter, and the rows that it fills."""

    source: Source
    target: Tensor
    scale_O: Tensor | None
    """float32; None where the parameter is kept in the model's dtype."""

    def put(self, values_OI: Tensor, scale_O: Tensor) -> None:
        """8-bit values, exactly or as the model's dtype."""
        if self.scale_O is None:
            self.target.copy_(values_OI.float() * scale_O[:, None])
        else:
            self.target.copy_(values_OI)
            self.scale_O.copy_(scale_O)

    def put_rounded(self, rows_OI: Tensor) -> None:
        """The source's rows with all their columns, rounded together whatever part of them is kept."""
        values_OI, scale_O = quantize_rows(rows_OI)
        self.put(values_OI[self.source.columns], scale_O)


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: bool = False,
    progress: Progress | None = None,
    member: Member = ALONE,
) -> Llama:
    """Load the weights of `folder` as `dtype` onto `device`, or those that one rank holds.

    Args:
        quantize: round the layers' products to 8-bit floats. Those that are stored so stay so if it is set, and are
            converted to `dtype` if it is not.

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
            _check(folder, source, stored)
    tensors, parts = _empty(wanted, dtype, device, quantize)
    entries = [stored[part.source.name] for part in parts]
    total, done = sum(entry.num_bytes for entry in entries), 0
    # Disks like their bytes in order.
    for part, entry in sorted(zip(parts, entries, strict=True), key=lambda pair: (pair[1].file, pair[1].offset)):
        _read(part, stored)
        done += entry.num_bytes
        if progress:
            progress(done, total)
    return assemble(config, tensors, member)


def scale_name(parameter: str) -> str:
    """Of the tensor with the scales of an 8-bit parameter."""
    return parameter.removesuffix(".weight") + ".scale"


def random_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    quantize: bool = False,
    member: Member = ALONE,
) -> Llama:
    """A model of the same shape with weights drawn from `seed`: for benchmarks of shapes, not of answers.

    Each tensor that a checkpoint would have has a seed of its own, so ranks hold parts of one model, whatever their
    number. A rank draws on its device, one whole tensor at a time.
    """
    generator = torch.Generator(device)
    wanted = parameters(config, member.rank)
    tensors, parts = _empty(wanted, dtype, device, quantize)
    for part in parts:
        source = part.source
        digest = blake2b(f"{seed} {source.name}".encode(), digest_size=7).digest()
        generator.manual_seed(int.from_bytes(digest, "little"))
        whole = torch.empty(source.shape, dtype=dtype, device=device).normal_(std=INITIAL_STD, generator=generator)
        if part.scale_O is None:
            part.target.copy_(whole[source.index])
        else:
            part.put_rounded(whole[source.rows])
    for name, tensor in tensors.items():
        if name.endswith("norm"):
            tensor.fill_(1.0)
    return assemble(config, tensors, member)


def _empty(
    wanted: dict[str, Parameter], dtype: torch.dtype, device: torch.device, quantize: bool
) -> tuple[dict[str, Tensor], list[Part]]:
    """A tensor for each parameter and each scale, and what fills them."""
    tensors: dict[str, Tensor] = {}
    parts: list[Part] = []
    for name, each in wanted.items():
        is_8_bit = quantize and name.endswith(PRODUCTS)
        tensors[name] = torch.empty(each.shape, dtype=FP8 if is_8_bit else dtype, device=device)
        if is_8_bit:
            tensors[scale_name(name)] = torch.empty(each.shape[0], dtype=torch.float32, device=device)
        parts += _parts(each, tensors[name], tensors.get(scale_name(name)))
    return tensors, parts


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


def _parts(parameter: Parameter, tensor: Tensor, scale: Tensor | None) -> list[Part]:
    """Each source of the parameter, and the rows of `tensor` and `scale` that it fills."""
    counts = [source.part[0] for source in parameter.sources]
    scales = [None] * len(counts) if scale is None else list(torch.split(scale, counts))
    return [
        Part(source, target, scale_O)
        for source, target, scale_O in zip(parameter.sources, torch.split(tensor, counts), scales, strict=True)
    ]


def _read(part: Part, stored: dict[str, StoredTensor]) -> None:
    source = part.source
    if stored[source.name].dtype == STORED_FP8:
        part.put(*read_fp8(source, stored, part.target.device))
    elif part.scale_O is None:
        part.target.copy_(read_tensor(stored, source.name, source.index))
    else:
        part.put_rounded(read_tensor(stored, source.name, source.rows).to(part.target.device))


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
