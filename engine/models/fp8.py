"""Weights of 8-bit floats with one scale for each output feature, from 16 bits or from published 8-bit formats.

    weight[o, i] = values[o, i] * scale[o]        values: float8_e4m3fn, scale: float32, largest |values[o]| = 448

Shape suffixes: O output features, I input features.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.core.errors import CheckpointError
from engine.models.checkpoint import StoredTensor, stored_tensors
from engine.models.quantization_config import BLOCK
from engine.models.weights import Source

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
STORED_FP8 = "F8_E4M3"
PRODUCTS = ("qkv.weight", "output.weight", "gate_up.weight", "down.weight")
"""Parameters that are quantized: all large ones but the embedding and the output projection."""


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """values_OI and scale_O. A row of zeros has a tiny scale."""
    wide_OI = weight_OI.float()
    scale_O = wide_OI.abs().amax(1).clamp_(min=1e-12) / FP8_MAX
    return (wide_OI / scale_O[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scale_O


def scale_of(source: Source, stored: dict[str, StoredTensor]) -> str:
    """The name of an 8-bit tensor's scale. Raises CheckpointError."""
    module = source.name.removesuffix(".weight")
    for name in (f"{module}.weight_scale", f"{module}.weight_scale_inv"):
        if name in stored:
            return name
    raise CheckpointError(
        f"{stored[source.name].file}: tensor {module}.weight_scale is missing, but {source.name} has 8-bit values"
    )


def read_fp8(source: Source, stored: dict[str, StoredTensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """values_OI and scale_O of the part that `source` names. With one scale a tensor or a row: exactly as stored.

    A row's scale is that of all its columns, whatever part of them is read: ranks hold parts of one rounded model.

    Raises:
        CheckpointError: the scale is missing or has a shape that does not fit.
    """
    scale_name = scale_of(source, stored)
    scale = read_tensor(stored, scale_name).to(device).float()
    num_out, num_in = source.shape
    if scale.numel() in (1, num_out):
        values_OI = read_tensor(stored, source.name, source.index).to(device)
        return values_OI, scale.flatten().expand(num_out)[source.rows]
    if tuple(scale.shape) != (-(-num_out // BLOCK), -(-num_in // BLOCK)):
        raise CheckpointError(
            f"{stored[scale_name].file}: tensor {scale_name} has shape {list(scale.shape)}, expected one value, "
            f"{num_out}, or one for each block of {BLOCK} x {BLOCK}"
        )
    scale_OI = scale.repeat_interleave(BLOCK, 0)[:num_out].repeat_interleave(BLOCK, 1)[:, :num_in]
    values_OI = read_tensor(stored, source.name, source.rows).to(device)
    values_OI, scale_O = quantize_rows(values_OI.float() * scale_OI[source.rows])
    return values_OI[source.columns], scale_O


def read_kv_scales(folder: Path, num_layers: int) -> tuple[tuple[float, float], ...]:
    """Scales of k and v in each layer, where the checkpoint has them for all; else empty.

    Published beside the attention (k_scale, v_scale: compressed-tensors) or beside the projections.
    """
    stored, found = stored_tensors(folder), []
    for layer in range(num_layers):
        attention = f"model.layers.{layer}.self_attn"
        for names in (
            (f"{attention}.k_scale", f"{attention}.v_scale"),
            (f"{attention}.k_proj.k_scale", f"{attention}.v_proj.v_scale"),
        ):
            if all(name in stored for name in names):
                k, v = (float(read_tensor(stored, name).float().max()) for name in names)
                found.append((k, v))
                break
    return tuple(found) if len(found) == num_layers else ()


def read_tensor(stored: dict[str, StoredTensor], name: str, part: slice | tuple[slice, ...] | None = None) -> Tensor:
    """One tensor, or a part of it. Raises CheckpointError when it cannot be read."""
    file_name = stored[name].file
    try:
        # One map a tensor: pages that were read leave the process with it.
        with safe_open(file_name, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name) if part is None else file.get_slice(name)[part]
            return tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file_name}: tensor {name} cannot be read: {error}") from error
